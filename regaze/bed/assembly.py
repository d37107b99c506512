"""Put the bed together: SmolLM2, the adapter merged into it, and the tower and projector that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from regaze.bed.base import load_base, weights_hash
from regaze.errors import InputError
from regaze.reading import StrPath

#: Configuration, processor, ``sight.safetensors`` (tower and projector) and ``adapter.safetensors``.
MODEL_DIR: Path = Path(__file__).resolve().parent / "model"
LONGEST_ANSWER = 200  #: tokens, unless the caller says otherwise: a long caption has some 150
_WEIGHTS = ("sight.safetensors", "adapter.safetensors")
#: Parts of the bed by the names that they have in `LlavaForConditionalGeneration`.
_PLACES = {"tower.": "model.vision_tower.", "projector.": "model.multi_modal_projector."}
#: Arguments of ``from_pretrained`` that say where the base's files are.
_OF_BASE = ("revision", "token", "subfolder", "local_files_only")


def missing_weights(folder: StrPath | None = None) -> list[str]:
    """The files of weights that a folder of the bed lacks; default: the one that the package ships."""
    return [name for name in _WEIGHTS if not (Path(folder or MODEL_DIR) / name).is_file()]


def assemble(
    base: StrPath | None = None,
    weights: StrPath | None = None,
    *,
    dtype: torch.dtype | str = torch.float32,
    **kwargs: Any,
) -> tuple[LlavaForConditionalGeneration, Any]:
    """The bed and its processor, in eval mode.

    The hash of the base is ``config.text_config.bed_base``.

    Args:
        base: folder or hub id of SmolLM2-135M-Instruct; default: what `regaze.bed.base.find_base` finds.
        weights: folder with what a training wrote; default: the one that the package ships.
        dtype: of the weights. Adapter and base are added up in fp32.
        kwargs: of ``from_pretrained``: revision, token, subfolder and local_files_only of the base, all
            others of the whole (device_map, attn_implementation, quantization_config).

    Raises:
        ModelNotFoundError: the base is not there; the message says how to get it.
        BadParameterError: the base is another model.
        InputError: ``weights`` lacks a file.
    """
    folder = Path(weights or MODEL_DIR).expanduser()
    if missing := missing_weights(folder):
        raise InputError(
            f"the bed's folder {folder} has no {missing[0]}: train it (docs/guide/bed.md) and give "
            "its folder as weights=FOLDER, or install a regaze that has it"
        )
    where = {name: kwargs.pop(name) for name in _OF_BASE if name in kwargs}
    language = load_base(base, dtype=torch.float32, **where)
    config = LlavaConfig.from_pretrained(folder)
    text_config: Any = config.text_config
    text_config.bed_base = weights_hash(language.state_dict())
    merge_adapter(language.model, folder / "adapter.safetensors")
    state = {f"model.language_model.{name}": weight for name, weight in language.model.state_dict().items()}
    for name, weight in load_file(folder / "sight.safetensors").items():
        part = name.split(".")[0] + "."
        state[_PLACES[part] + name.removeprefix(part)] = weight
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, **kwargs
    )
    model.config.name_or_path = "bed" if folder == MODEL_DIR else str(folder)
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=2, do_sample=False, max_new_tokens=LONGEST_ANSWER
    )
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
