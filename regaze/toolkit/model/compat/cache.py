"""Key-value caches: their name in arguments and outputs, their length, and their rows and columns."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    QuantizedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from regaze.errors import InputError, UnsupportedModelError

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


def beside_cache(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward but its cache."""
    return _without(inputs, *CACHE_NAMES)


def _without(inputs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in names}


def cache_of(output: Any) -> Cache | None:
    """The key-value cache in a model's output, a `ModelOutput` or a tuple."""
    own = getattr(output, _CACHE, None)
    if isinstance(own, Cache):
        return own
    values = output if isinstance(output, tuple) else (getattr(output, name, None) for name in CACHE_NAMES)
    return next((value for value in values if isinstance(value, Cache)), None)


def cache_length(cache: Any) -> int:
    """Number of columns in a key-value cache, those of padding for longer branches too; 0 for no cache."""
    if cache is None:
        return 0
    known = cache._regaze_length if isinstance(cache, _FollowsRows) else None
    return int(_stock(cache).get_seq_length()) if known is None else known


def note_length(cache: Any, length: int | None) -> None:
    """Say how many columns a cache that `follow_cache` was given has; None: it is about to change.

    A static cache has its length on its device, and reading it would make the host wait in every step.
    """
    if isinstance(cache, _FollowsRows):
        if length is not None and cache._regaze_on_device is None:
            cache._regaze_on_device = isinstance(_stock(cache).get_seq_length(), Tensor)
        cache._regaze_length = length if cache._regaze_on_device else None


def _stock(cache: Any) -> Any:
    """A cache with the methods of transformers."""
    return super(_FollowsRows, cache) if isinstance(cache, _FollowsRows) else cache


def crop_last(cache: Cache) -> None:
    """Remove the last token of a cache. Raises UnsupportedModelError for a kind of cache that cannot."""
    note_length(cache, None)
    try:
        _stock(cache).crop(-1)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UnsupportedModelError(
            f"this {type(cache).__name__} cannot drop its last token, which an intervention needs here; "
            "generate with cache_implementation='dynamic'"
        ) from error


def is_forkable(cache: Cache) -> bool:
    """Whether every layer keeps every token, so that the cache can be continued several times."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def fork(cache: Cache, rows: int) -> Cache:
    """A cache of several rows that go on from the first row of `cache`, which never changes by it.

    Raises:
        UnsupportedModelError: a layer of a fixed size, which has no room, or one that is quantised; or tokens
            have left the prompt in some layers.
    """
    layers: list[Any] = cache.layers
    for layer in layers:
        if isinstance(layer, (StaticLayer, QuantizedLayer)):
            raise UnsupportedModelError(
                f"a cache with a {type(layer).__name__} cannot be continued several times; generate with "
                "cache_implementation='dynamic'"
            )
    growing = {int(layer.get_seq_length()) for layer in layers if isinstance(layer, DynamicLayer)}
    if len(growing) > 1:
        raise UnsupportedModelError(
            "the layers of this cache hold different tokens of the prompt: what comes next has no one place"
        )
    forked = copy.copy(cache)
    # An update gives most layers other tensors; some write into those that they have.
    forked.layers = [copy.copy(each) if type(each) in _OF_ROWS else copy.deepcopy(each) for each in layers]
    unfollow_cache(forked)
    first: Any = torch.zeros(rows, dtype=torch.int64)
    forked.reorder_cache(first)
    return forked


#: Kinds of layers whose rows are those of two tensors.
_OF_ROWS = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer)


def is_fresh(cache: Any, number: int) -> bool:
    """Whether a layer of a cache has no rows yet, and `map_rows` can change those it gets; or no cache."""
    if cache is None:
        return True
    layers = getattr(cache, "layers", ())
    held = layers[number] if number < len(layers) else None
    kind = getattr(cache, "layer_class_to_replicate", None) if held is None else type(held)
    return kind in _OF_ROWS and (held is None or not held.is_initialized)


def map_rows(cache: Any, number: int, change: Callable[[Tensor], Tensor]) -> None:
    """Give the rows of one layer of a cache, keys and values [B, Hkv, n, D] each, another number."""
    layer = cache.layers[number]
    for name in ("keys", "values"):
        part = change(getattr(layer, name))
        setattr(layer, name, part)
        if isinstance(layer, StaticLayer):  # as transformers does for graphs that are captured
            layer.batch_size = part.shape[0]
            torch._dynamo.mark_static_address(part)


def keep_columns(cache: Any, columns: Tensor) -> None:
    """Keep only the columns `columns` [B, n] of a cache, in this order; for a cache that `is_forkable`."""
    for layer in cache.layers:
        index = columns[:, None, :, None].to(layer.keys.device)
        index = index.expand(-1, layer.keys.shape[1], -1, -1)
        layer.keys = layer.keys.gather(2, index.expand(-1, -1, -1, layer.keys.shape[3]))
        layer.values = layer.values.gather(2, index.expand(-1, -1, -1, layer.values.shape[3]))


def rewrite_layer(
    cache: Any, layer: int, length: int, change: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
) -> None:
    """Put other keys and values in the place of those that a cache holds of a layer.

    Args:
        length: tokens that the layer was given so far.
        change: from keys and values [B, Hkv, n, D], and how many tokens were dropped before these.

    Raises:
        UnsupportedModelError: a kind of cache whose columns cannot be written, or none for this layer.
    """
    layers = getattr(cache, "self_attention_cache", cache).layers
    held = layers[layer] if layer < len(layers) else None
    if not isinstance(held, DynamicLayer | StaticLayer) or isinstance(held, QuantizedLayer):
        raise UnsupportedModelError(
            f"keys and values of layer {layer} cannot be changed in this {type(cache).__name__} "
            f"({type(held).__name__}); generate with cache_implementation='dynamic'"
        )
    keys, values = held.keys, held.values
    assert keys is not None
    assert values is not None
    first = max(0, length - keys.shape[2])
    count = length - first
    changed = change(keys[:, :, :count], values[:, :, :count], first)
    if isinstance(held, StaticLayer):  # whose addresses stay
        keys[:, :, :count].copy_(changed[0])
        values[:, :, :count].copy_(changed[1])
    else:
        held.keys, held.values = changed


def users_part(cache: Cache, rows: int, hidden: int) -> list[tuple[Any, str, Any]]:
    """What makes a cache of several contexts the one that the plain model would have filled.

    Args:
        rows: B, the user's rows. hidden: columns before the user's prompt, padding for longer branches.

    Returns:
        Objects, names of their attributes and the new values: setting them can be repeated.
    """
    changes: list[tuple[Any, str, Any]] = []
    for layer in cache.layers:
        keys = getattr(layer, "keys", None)
        if isinstance(keys, Tensor) and keys.dim() == 4:
            parts = _static_part if isinstance(layer, StaticLayer) else _dynamic_part
            changes += [(layer, name, value) for name, value in parts(layer, rows, hidden).items()]
        elif hasattr(layer, "batch_select_indices"):  # without columns
            layer.batch_select_indices(torch.arange(rows))
    return changes


def _dynamic_part(layer: Any, rows: int, hidden: int) -> dict[str, Any]:
    held, found = layer.keys.shape[2], dict[str, Any]()
    start = hidden
    if isinstance(layer, DynamicSlidingWindowLayer):  # holds the last columns only
        found["cumulative_length"] = length = int(layer.cumulative_length) - hidden
        start = held - min(held, length)
    for name in ("keys", "values"):
        found[name] = getattr(layer, name)[:rows, :, start:].clone()
    if isinstance(indexer := getattr(layer, "indexer_keys", None), Tensor):
        found["indexer_keys"] = indexer[:rows, start:].clone()
    if isinstance(positions := getattr(layer, "indexer_position_ids", None), Tensor):
        found["indexer_position_ids"] = positions[:, :rows, start:].clone()
    return found


def _static_part(layer: Any, rows: int, hidden: int) -> dict[str, Any]:
    """A static layer of a size holds columns 0, 1, ...; one with a window the last ones, once it is full."""
    before, after = layer.max_cache_len, layer.max_cache_len - getattr(layer, _ROOM, 0)
    length = getattr(layer, "cumulative_length_int", None)
    length = int(layer.cumulative_length) if length is None else length
    count = min(length - hidden, after)
    start = length - count - max(0, length - before)  # of the user's last columns, among those held
    found: dict[str, Any] = {"max_cache_len": after, "batch_size": rows}
    for name in ("keys", "values"):
        held = getattr(layer, name)
        part = held.new_zeros(rows, held.shape[1], after, held.shape[3])
        part[:, :, :count] = held[:rows, :, start : start + count]
        found[name] = part
    found["cumulative_length"] = torch.full_like(layer.cumulative_length, count)
    if hasattr(layer, "cumulative_length_int"):
        found["cumulative_length_int"] = length - hidden
    return found


#: Where a static layer keeps how many columns it was given more than the user asked for.
_ROOM = "_regaze_room"


def make_room(cache: Any, more: int, window: int | None) -> None:
    """Let a cache made for the user's prompts hold `more` columns, those of a longer branch.

    Args:
        window: of the layers that have one.

    Raises:
        UnsupportedModelError: a kind of cache whose columns cannot be taken away again.
    """
    for layer in getattr(cache, "layers", ()) if more else ():
        if isinstance(layer, QuantizedLayer):
            raise UnsupportedModelError(
                "a second context that is longer than the prompt cannot share a quantised cache with it; "
                "generate with cache_implementation='dynamic'"
            )
        if isinstance(layer, StaticLayer) and not layer.is_initialized:
            room = more
            if isinstance(layer, StaticSlidingWindowLayer):
                room = max(0, min(layer.max_cache_len + more, window or 0) - layer.max_cache_len)
            layer.max_cache_len += room
            setattr(layer, _ROOM, room)


class _FollowsRows:
    """A cache that re-orders the rows of all branches, and the state of callbacks, with the user's beams.

    It also notices when `generate` rolls tokens back. Between forwards its length is that of the user's rows,
    without the padding that a longer branch puts before them.
    """

    _regaze_context: weakref.ref[Any]
    _regaze_hidden: int = 0
    _regaze_running: bool = False
    _regaze_length: int | None = None  # see `note_length`
    _regaze_on_device: bool | None = None  # where its length is; None: not known yet

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        length = super().get_seq_length(layer_idx)  # type: ignore[misc]
        hidden = 0 if self._regaze_running else self._regaze_hidden
        return length - hidden if hidden else length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        context = self._regaze_context()
        if context is not None:
            beam_idx = context.forward_rows(beam_idx)
            context.reorder(beam_idx)
        super().reorder_cache(beam_idx)  # type: ignore[misc]

    def crop(self, max_length: int) -> None:
        context, before = self._regaze_context(), cache_length(self)
        note_length(self, None)
        if context is not None and context.kept_tokens is not None and max_length > 0:
            max_length = min(0, max_length - before)  # the same number of tokens of each layer
        super().crop(max_length)  # type: ignore[misc]
        if context is not None and cache_length(self) < before:
            context.on_rollback()

    def reset(self) -> None:
        note_length(self, None)
        super().reset()  # type: ignore[misc]


@lru_cache
def _following(kind: Any) -> Any:
    """The class of caches `kind` with `_FollowsRows` on top."""
    return type(kind.__name__, (_FollowsRows, kind), {"__module__": kind.__module__})


def follow_cache(cache: Cache, context: Any, hidden: int = 0) -> None:
    """Re-order `context` and the rows of its branches when beam search re-orders the user's in `cache`.

    Args:
        hidden: columns before the user's prompt.
    """
    if not isinstance(cache, _FollowsRows):
        kind: Any = type(cache)
        cache.__class__ = _following(kind)
    following: Any = cache
    following._regaze_context, following._regaze_hidden = weakref.ref(context), hidden


def set_running(cache: Any, running: bool) -> None:
    """Whether a forward runs: it sees all columns of a cache that `follow_cache` was given."""
    if isinstance(cache, _FollowsRows):
        cache._regaze_running = running


def unfollow_cache(cache: Any) -> None:
    """Make a cache that `follow_cache` was given an object of its own class again."""
    for layer in getattr(cache, "layers", ()):
        layer.__dict__.pop(_ROOM, None)
    for name in ("_regaze_context", "_regaze_hidden", "_regaze_running", "_regaze_length"):
        cache.__dict__.pop(name, None)
    if isinstance(cache, _FollowsRows):
        cache.__class__ = type(cache).__mro__[2]


class _Spent:
    """A cache that lacks tokens of its prompt, after the block in which they were removed."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            "a method has removed tokens of the prompt from this key-value cache, and its block has ended: "
            "run the prompt again, or go on inside the block"
        )


@lru_cache
def _spent(kind: Any) -> Any:
    return type(kind.__name__, (_Spent, kind), {"__module__": kind.__module__})


def spend_cache(cache: Any) -> None:
    """Let no forward go on from a cache, see `_Spent`."""
    if not isinstance(cache, _Spent):
        kind: Any = type(cache)
        cache.__class__ = _spent(kind)
