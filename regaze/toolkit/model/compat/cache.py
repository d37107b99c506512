"""Key-value caches: their name in arguments and outputs, their length, and their rows and columns."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from regaze.errors import UnsupportedModelError

#: Names of the cache among a forward's arguments and in its output: from transformers 5.24 on, and before.
CACHE_NAMES = ("cache", "past_key_values")
_CACHE = next((n for n in CACHE_NAMES if n in CausalLMOutputWithPast.__dataclass_fields__), CACHE_NAMES[0])


def cache_argument(inputs: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a forward; None where there is none."""
    for name in CACHE_NAMES:
        if (cache := inputs.get(name)) is not None:
            return cache
    return None


def uses_cache(inputs: Mapping[str, Any]) -> bool:
    """Whether the arguments of a forward let it fill a cache."""
    return inputs.get("use_cache") is not False


def with_cache(inputs: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """The arguments of a forward (or of `generate`) that goes on from `cache`."""
    return {**_without(inputs, *CACHE_NAMES), _CACHE: cache, "use_cache": True}


def without_cache(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward that neither reads nor fills a cache."""
    return {**_without(inputs, *CACHE_NAMES, "cache_position"), "use_cache": False}


def _without(inputs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in names}


def cache_of(output: Any) -> Cache | None:
    """The key-value cache in a model's output, a `ModelOutput` or a tuple."""
    values = output if isinstance(output, tuple) else (getattr(output, name, None) for name in CACHE_NAMES)
    return next((value for value in values if isinstance(value, Cache)), None)


def cache_length(cache: Any) -> int:
    """Number of tokens in a key-value cache; 0 for no cache."""
    return 0 if cache is None else int(cache.get_seq_length())


def crop_last(cache: Cache) -> None:
    """Remove the last token of a cache. Raises UnsupportedModelError for a kind of cache that cannot."""
    stock: Any = super(_FollowsRows, cache) if isinstance(cache, _FollowsRows) else cache
    try:
        stock.crop(-1)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UnsupportedModelError(
            f"this {type(cache).__name__} cannot drop its last token, which an intervention needs here; "
            "generate with cache_implementation='dynamic'"
        ) from error


def is_forkable(cache: Cache) -> bool:
    """Whether every layer keeps every token, so that the cache can be continued several times."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def keep_columns(cache: Any, columns: Tensor) -> None:
    """Keep only the columns `columns` [B, n] of a cache, in this order; for a cache that `is_forkable`."""
    for layer in cache.layers:
        index = columns[:, None, :, None].to(layer.keys.device)
        index = index.expand(-1, layer.keys.shape[1], -1, -1)
        layer.keys = layer.keys.gather(2, index.expand(-1, -1, -1, layer.keys.shape[3]))
        layer.values = layer.values.gather(2, index.expand(-1, -1, -1, layer.values.shape[3]))


def keep_rows(cache: Cache, rows: int) -> None:
    """Keep only the first `rows` rows of a cache."""
    for layer in cache.layers:
        if hasattr(layer, "batch_select_indices"):
            layer.batch_select_indices(torch.arange(rows))
        elif isinstance(layer, StaticLayer) and layer.keys is not None and layer.values is not None:
            layer.keys, layer.values = layer.keys[:rows], layer.values[:rows]


def make_room(cache: Any, more: int) -> None:
    """Let a static cache made for the user's prompts hold `more` tokens, those of a longer branch."""
    for layer in getattr(cache, "layers", ()):
        if type(layer) is StaticLayer and not layer.is_initialized:
            layer.max_cache_len += more


class _FollowsRows:
    """A cache that re-orders the rows of all branches, and the state of callbacks, with the user's beams.

    It also notices when `generate` rolls tokens back.
    """

    _regaze_context: weakref.ref[Any]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        context = self._regaze_context()
        if context is not None:
            beam_idx = context.forward_rows(beam_idx)
            context.reorder(beam_idx)
        super().reorder_cache(beam_idx)  # type: ignore[misc]

    def crop(self, max_length: int) -> None:
        context, before = self._regaze_context(), cache_length(self)
        super().crop(max_length)  # type: ignore[misc]
        if context is not None and cache_length(self) < before:
            context.on_rollback()


@lru_cache
def _following(kind: Any) -> Any:
    """The class of caches `kind` with `_FollowsRows` on top."""
    return type(kind.__name__, (_FollowsRows, kind), {"__module__": kind.__module__})


def follow_cache(cache: Cache, context: Any) -> None:
    """Re-order `context` and the rows of its branches when beam search re-orders the user's in `cache`."""
    if not isinstance(cache, _FollowsRows):
        kind: Any = type(cache)
        cache.__class__ = _following(kind)
    cache._regaze_context = weakref.ref(context)  # type: ignore[attr-defined]
