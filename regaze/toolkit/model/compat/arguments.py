"""The arguments of a model's forward: which hold tokens, which hold media, and which follow from others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from regaze.toolkit.model.compat.cache import CACHE_NAMES
from regaze.toolkit.model.compat.layout import text_config

#: Arguments that say of each token whether it is text or shows an image.
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
#: Arguments with one entry per token, and the value of padding in each.
SEQUENCES = {"input_ids": 0, "attention_mask": 0, **dict.fromkeys(TOKEN_TYPES, 0)}
#: Arguments that belong to the whole call. Every other tensor is media (pixels, their sizes).
_OF_THE_CALL = {*CACHE_NAMES, "position_ids", "cache_position", "logits_to_keep", "labels", "inputs_embeds"}


def decoder_inputs(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a forward, those of an encoder-decoder's decoder under the names of a decoder."""
    if not model.config.is_encoder_decoder:
        return inputs
    names = ("input_ids", "attention_mask", "inputs_embeds", "position_ids")
    return {**inputs, **{name: inputs.get(f"decoder_{name}") for name in names}}


def prompt_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """The prompt of a forward: ids [B, L] or embeddings [B, L, D]; None for a vision model used alone."""
    ids: Tensor | None = inputs.get("input_ids")
    return ids if ids is not None else inputs.get("inputs_embeds")


def padding_mask(mask: Any, length: int) -> Tensor | None:
    """Which tokens of the prompt are not padding, [B, L], from the mask that `generate` passes at prefill.

    With a static cache that mask is [B, 1, L, Lk], or one per kind of layer; padding does not see itself
    in it.
    """
    if isinstance(mask, dict):
        mask = next((m for m in mask.values() if m is not None), None)
    if mask is None or mask.dim() != 4:
        return mask
    own = mask[:, 0, :, :length].diagonal(dim1=1, dim2=2)
    return own > torch.finfo(own.dtype).min / 2 if own.is_floating_point() else own


def static_length(mask: Any, length: int) -> int:
    """Columns of a static cache, by the mask that `generate` passes with it; `length` with another cache."""
    masks = mask.values() if isinstance(mask, dict) else [mask]
    return max([length, *(m.shape[-1] for m in masks if m is not None and m.dim() == 4)])


def pop_positions(inputs: dict[str, Any]) -> Tensor | None:
    """Remove the positions from the arguments of a forward and return its `position_ids`."""
    inputs.pop("cache_position", None)  # which transformers makes for remote code only
    positions: Tensor | None = inputs.pop("position_ids", None)
    return positions


def last_logits_only(model: PreTrainedModel) -> dict[str, int]:
    """The argument that makes a forward compute the logits of the last token alone, where there is one."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def attention_configs(model: PreTrainedModel) -> tuple[PreTrainedConfig, ...]:
    """The configurations that can make a model return attention weights."""
    return model.config, text_config(model)


def wants_attentions(configs: Sequence[PreTrainedConfig], inputs: Mapping[str, Any]) -> bool:
    """Whether a forward with these arguments returns attention weights.

    Args:
        configs: see `attention_configs`. Read past their `__getattribute__`, which takes longer than
            an edit does.
    """
    wanted = inputs.get("output_attentions")
    if wanted is not None:
        return bool(wanted)
    for config in configs:  # noqa: SIM110 (in every step: no generator)
        if object.__getattribute__(config, "_output_attentions"):
            return True
    return False


def media_names(inputs: Mapping[str, Any]) -> list[str]:
    """The arguments of a forward that hold images: tensors that are not text."""
    return [
        name
        for name, value in inputs.items()
        if isinstance(value, Tensor) and name not in SEQUENCES and name not in _OF_THE_CALL
    ]


def _media_axis(inputs: Mapping[str, Any], name: str) -> int:
    """The axis of an argument of a forward along which the images of a batch lie.

    MiniCPM-V packs the patches of all of them into one [1, 3, P, sum of patches * P].
    """
    return -1 if name == "pixel_values" and inputs.get("target_sizes") is not None else 0


#: Where the rows lie in arguments of a decoder and its layers, if not along the first axis: positions have
#: several axes in some.
_ROW_AXES = {"position_embeddings": -3, "position_ids": -2}


def map_argument_rows(name: str, value: Any, rows: int, change: Callable[[Tensor, int], Tensor]) -> Any:
    """An argument of a decoder or a layer with other rows.

    Args:
        rows: that it has; what has another number is left alone.
        change: of a tensor and the axis of its rows.
    """
    if isinstance(value, tuple):
        return tuple(map_argument_rows(name, part, rows, change) for part in value)
    if isinstance(value, dict):  # a mask for each kind of layers
        return {key: map_argument_rows(name, part, rows, change) for key, part in value.items()}
    axis = _ROW_AXES.get(name, 0)
    if not isinstance(value, Tensor) or value.dim() < max(2, -axis) or value.shape[axis] != rows:
        return value
    return change(value, axis)


#: Arguments of a decoder whose rows are known.
_OF_DECODERS = {
    *("input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache_position", "use_cache"),
    *(*CACHE_NAMES, "output_attentions", "output_hidden_states", "return_dict", "kwargs"),
}


def takes_rows(model: PreTrainedModel) -> bool:
    """Whether the decoder takes nothing but tokens beside its cache, so that its rows can be changed.

    Others take an image's features a second time (Qwen3-VL), or embeddings for each layer (Gemma 3n).
    """
    return set(inspect.signature(model.get_decoder().forward).parameters) <= _OF_DECODERS


def join_media(contexts: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    """An argument of a forward that holds images, for all contexts that have it.

    Molmo 2's `image_token_pooling` are numbers of patches among those of all images; -1 is none.
    """
    having = [context for context in contexts if context.get(name) is not None]
    parts = [context[name] for context in having]
    if name == "image_token_pooling":
        before = 0
        for i, context in enumerate(having):
            parts[i] = torch.where(parts[i] >= 0, parts[i] + before, parts[i])
            before += context["pixel_values"][..., 0].numel()
    return torch.cat(parts, _media_axis(contexts[0], name))


def last_row(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward of the prompt's last token [B, 1], from those of the prefill."""
    media = (*media_names(inputs), "mm_encoder_outputs")
    last = {name: value for name, value in inputs.items() if name not in media}
    for name in ("input_ids", "inputs_embeds", *TOKEN_TYPES):
        if last.get(name) is not None:
            last[name] = last[name][:, -1:]
    if last.get("position_ids") is not None:
        last["position_ids"] = last["position_ids"][..., -1:]
    mask = last.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 4:
        last["attention_mask"] = mask[:, :, -1:]
    return last
