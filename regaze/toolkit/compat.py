"""All that depends on how transformers works inside, in one place (floor 5.17, tested up to 5.23)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from regaze.errors import UnsupportedModelError

#: The one name under which attention and mask are registered. transformers gives meaning to parts of names
#: ("sdpa", "flash", "flex", "/"), so this one contains none of them.
IMPLEMENTATION = "regaze"

plain_attention = sdpa_attention_forward


def register(function: Any) -> None:
    """Make `function` an attention implementation. Without its mask function, padding would be dropped."""
    AttentionInterface.register(IMPLEMENTATION, function)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the language model inside `model`."""
    return model.config.get_text_config(decoder=True)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of the language model, whose inputs are the residual stream."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of decoder layers at get_decoder().layers"
        )
    return layers


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Modules of the language model that call the attention interface: they know layer and config."""
    config = text_config(model)
    return [
        m
        for m in model.get_decoder().modules()
        if hasattr(m, "layer_idx") and getattr(m, "config", None) is config
    ]


def current_attention(model: PreTrainedModel) -> str:
    return text_config(model)._attn_implementation


def set_attention(model: PreTrainedModel, implementation: str) -> None:
    """Set the attention of the language model only, and make sure that it took it.

    Raises:
        UnsupportedModelError: the model does not dispatch its attention through transformers' interface.
    """
    config = text_config(model)
    if config is model.config:
        requested: str | dict[str, str] = implementation
    else:
        requested = {_sub_config_key(model.config, config): implementation}
    model.set_attn_implementation(requested)
    if config._attn_implementation != implementation:
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps its attention {config._attn_implementation!r}: it does not go "
            "through transformers' attention interface, so regaze cannot reach it"
        )


def _sub_config_key(config: PreTrainedConfig, wanted: PreTrainedConfig) -> str:
    for key in config.sub_configs:
        if getattr(config, key, None) is wanted:
            return key
    raise UnsupportedModelError(
        f"{type(config).__name__} does not list its text configuration among its sub-configs"
    )


def cache_of(output: Any) -> Cache | None:
    """The key-value cache in a model's output, be it a `ModelOutput` or a tuple."""
    values = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
    return next((value for value in values if isinstance(value, Cache)), None)


def seen_tokens(cache: Any) -> int:
    """Number of tokens that a key-value cache already holds; 0 for no cache."""
    return 0 if cache is None else int(cache.get_seq_length())
