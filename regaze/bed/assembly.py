"""Put the bed together: SmolLM2, the adapter merged into it, and the tower and projector that ship."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from regaze.bed.base import load_base, weights_hash
from regaze.errors import InputError

#: Configuration, processor, ``sight.safetensors`` (tower and projector) and ``adapter.safetensors``.
MODEL_DIR: Path = Path(__file__).resolve().parent / "model"
LONGEST_ANSWER = 200  #: tokens, unless the caller says otherwise: a long caption has some 150


def assemble(
    base: str | os.PathLike[str] | None = None,
    folder: Path = MODEL_DIR,
    *,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> tuple[LlavaForConditionalGeneration, Any]:
    """The bed and its processor, in eval mode.

    Args:
        base: folder or hub id of SmolLM2-135M-Instruct; default: what `regaze.bed.base.find_base` finds.
        folder: with what training wrote.
        dtype: of the weights. Adapter and base are added up in fp32.
        kwargs: of ``from_pretrained`` of the base.

    Raises:
        ModelNotFoundError: the base is not there; the message says how to get it.
        BadParameterError: the base is another model.
        InputError: ``folder`` lacks a file.
    """
    for name in ("sight.safetensors", "adapter.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"the bed's folder {folder} has no {name}: train it (docs/guide/bed.md), or reinstall regaze"
            )
    language = load_base(base, dtype=torch.float32, **kwargs)
    digest = weights_hash(language.state_dict())
    merge_adapter(language.model, folder / "adapter.safetensors")
    model = LlavaForConditionalGeneration(LlavaConfig.from_pretrained(folder))
    model.model.language_model.load_state_dict(language.model.state_dict())
    _load_sight(model, load_file(folder / "sight.safetensors"))
    model.tie_weights()
    text_config: Any = model.config.text_config
    text_config.bed_base = digest
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=2, do_sample=False, max_new_tokens=LONGEST_ANSWER
    )
    model.to(dtype)  # type: ignore[arg-type]
    return model.eval(), AutoProcessor.from_pretrained(folder)


@torch.no_grad()
def merge_adapter(language: torch.nn.Module, path: Path) -> None:
    """Add the adapter to the weights of a ``LlamaModel`` in place: W + scale B A.

    The file has "layers.12.self_attn.q_proj.lora_A" [r, in] and "...lora_B" [out, r], and the scale in its
    metadata.
    """
    with safe_open(path, framework="pt") as file:
        scale = float(file.metadata()["scale"])
        for name in file.keys():  # noqa: SIM118 - a file of safetensors is no mapping
            place, _, part = name.rpartition(".")
            if part == "lora_A":
                change = file.get_tensor(f"{place}.lora_B").float() @ file.get_tensor(name).float()
                weight: Tensor = language.get_submodule(place).weight  # type: ignore[assignment]
                weight += (scale * change).to(weight.dtype)


def _load_sight(model: LlavaForConditionalGeneration, weights: dict[str, Tensor]) -> None:
    parts = {"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector}
    for part, module in parts.items():
        prefix = f"{part}."
        module.load_state_dict(
            {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        )
