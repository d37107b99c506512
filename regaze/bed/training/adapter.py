"""The adapter of the language model: low-rank changes (LoRA) of attention and MLP, by peft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from regaze.bed.training.recipe import Recipe

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def attach(model: Any, recipe: Recipe) -> PeftModel:
    """A new adapter on the language model; its weights are fp32, those below stay as they are."""
    layers = model.config.num_hidden_layers
    starts = ((recipe.attention_from, ATTENTION), (recipe.mlp_from, MLP))
    targets = "|".join(
        rf"layers\.({'|'.join(map(str, range(first, layers)))})\.\w+\.({'|'.join(names)})"
        for first, names in starts
    )
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0, target_modules=rf".*\.({targets})"
    )
    return get_peft_model(model, config)


def adapter_weights(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's weights by the names that `merge_adapter` reads ("layers.12.self_attn.q_proj.lora_A")."""
    state: Mapping[str, Tensor] = get_peft_model_state_dict(model)
    return {_short(name): weight for name, weight in state.items()}


def _short(name: str) -> str:
    return name.removeprefix("base_model.model.model.").removesuffix(".weight")


def save_adapter(model: PeftModel, recipe: Recipe, path: Path) -> None:
    """Write the adapter as bf16 safetensors, with its scale."""
    weights = {
        name: weight.detach().to(torch.bfloat16).contiguous()
        for name, weight in adapter_weights(model).items()
    }
    save_file(weights, path, metadata={"scale": str(recipe.alpha / recipe.rank)})
