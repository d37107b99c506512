"""The arguments of decoder layers for some tokens of a prompt; models and caches that allow this."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, StaticLayer

from regaze.errors import InputError, UnsupportedModelError
from regaze.toolkit.model.compat.arguments import TOKEN_TYPES
from regaze.toolkit.model.compat.cache import CACHE_NAMES, cache_argument
from regaze.toolkit.model.compat.layout import is_vision_model, text_config

#: Arguments of layers with an entry per token, and the axis of the tokens.
_TOKEN_AXES = {"position_ids": -1, "position_embeddings": -2, **dict.fromkeys(TOKEN_TYPES, -1)}
#: Arguments that stay as they are: masks are cut where they are used, and caches that grow read no positions.
_INSTEAD = "hide them instead (remove=False)"
_WHOLE = {"attention_mask", "cache_position", *CACHE_NAMES}


def layer_arguments(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a decoder layer by their names."""
    names = inspect.signature(layer.forward).parameters
    return {**dict(zip(names, args, strict=False)), **kwargs}


def without_own_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a layer that neither reads nor fills a cache."""
    return {name: None if name in CACHE_NAMES else value for name, value in arguments.items()}


def for_tokens(
    layer: nn.Module, arguments: Mapping[str, Any], select: Callable[[Tensor, int], Tensor], length: int
) -> dict[str, Any]:
    """The arguments of a layer, but for its hidden states, for some tokens of a prompt of `length`.

    Args:
        select: their part of a tensor [..., B or 1, L, ...] along the axis of L.

    Raises:
        UnsupportedModelError: an argument that regaze does not know has an entry for each token.
    """
    found = dict(arguments)
    for name, value in arguments.items():
        if name == "hidden_states" or name in _WHOLE:
            continue
        if name in _TOKEN_AXES:
            found[name] = _selected(value, _TOKEN_AXES[name], select)
        elif any(length in part.shape for part in _tensors(value)):
            raise UnsupportedModelError(
                f"{type(layer).__name__} is given `{name}`, which has an entry per token and which regaze "
                f"does not know, so tokens cannot be removed here; {_INSTEAD}"
            )
    return found


def _selected(value: Any, axis: int, select: Callable[[Tensor, int], Tensor]) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_selected(part, axis, select) for part in value)
    return select(value, value.dim() + axis) if isinstance(value, Tensor) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def check_tokens_can_leave(
    model: PreTrainedModel, layer: int, attending: frozenset[int], arguments: Mapping[str, Any], who: str
) -> None:
    """Whether tokens can leave the prompt before `layer`, and with them the caches from there on.

    Args:
        attending: the layers with self-attention. arguments: those of the layer. who: takes them away.

    Raises:
        UnsupportedModelError, InputError: why not.
    """
    if isinstance(cache := cache_argument(arguments), Cache):
        _check_cache(cache, layer, who)
    reason = _obstacle(model, layer, attending, arguments["hidden_states"])
    if reason is not None:
        raise UnsupportedModelError(
            f"{who} cannot remove tokens: {type(model).__name__} {reason}; {_INSTEAD}"
        )


def _obstacle(model: PreTrainedModel, layer: int, attending: frozenset[int], hidden: Tensor) -> str | None:
    """What a model does that needs all tokens behind `layer`; None: nothing."""
    config = text_config(model)
    if is_vision_model(model):
        return "is a vision model used alone, which gives all its tokens"
    if hidden.dim() != 3:
        return "has several residual streams (hyper-connections)"
    others = sorted(set(range(layer, config.num_hidden_layers)) - attending)
    if others or min(attending) >= layer:
        where = f"in layers {others}" if others else f"before layer {layer}"
        return f"mixes tokens without attention {where} (a recurrence or a convolution)"
    if getattr(config, "num_kv_shared_layers", 0):
        return "has last layers that use keys of earlier ones"
    deepstack = _deepstack_layers(model)
    if deepstack > layer:
        return (
            f"adds features of the image to its tokens up to layer {deepstack - 1} (DeepStack), so that they "
            f"can leave before layer {deepstack} or later, not before layer {layer}"
        )
    return None


def _deepstack_layers(model: PreTrainedModel) -> int:
    """How many of the first layers are given features of the image beside their input; 0 for most models."""
    configs = [model.config, text_config(model), getattr(model.config, "vision_config", None)]
    counts = [len(getattr(config, "deepstack_visual_indexes", None) or ()) for config in configs]
    places = getattr(model.config, "deepstack_layer_map", None)  # Granite 4 Vision's (block, layer)
    if places is not None:
        layers = [layer for _, layer in places] + list(model.config.spatial_target_layers)
        counts.append(1 + max(layers, default=-1))
    return max(counts)


def _check_cache(cache: Cache, first: int, who: str) -> None:
    for layer in cache.layers[first:]:
        if isinstance(layer, StaticLayer):
            raise InputError(
                f"{who} cannot remove tokens: a static cache has the same tokens in each layer; generate "
                f"with cache_implementation='dynamic', or {_INSTEAD}"
            )
        if type(layer) is not DynamicLayer:
            raise UnsupportedModelError(
                f"{who} cannot remove tokens: the cache has a {type(layer).__name__}, which does not simply "
                f"hold all keys (a sliding window keeps the last ones); {_INSTEAD}"
            )
