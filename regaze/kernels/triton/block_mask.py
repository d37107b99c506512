"""Which blocks of keys a block of query rows has to visit, found once per mask.

A mask [B, H, Lq, Lk] hides most keys in whole blocks: those after a causal row, padding, all outside a
sliding window. One small kernel reads the mask once and says of each block whether it is empty, seen in part
or seen wholly. Per row block the map lists the wholly seen key blocks, for which a kernel reads no mask at
all, and after them the partly seen ones. Of empty blocks, which are not listed, neither keys nor mask are
read again.

A map belongs to one row list, since the blocks of the edited rows are not those of all rows. It is kept for
the layers that share a mask.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.triton.common import shown
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.operands import Scoring, row_numbers, visible_tile
from regaze.kernels.triton.plan import mask_arg


@triton.jit
def kinds_kernel(
    kinds, rows, call, heads, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """kinds [B', H', row blocks, key blocks]: 0 nothing seen, 1 something, 2 all of it and nothing added."""
    key_block, row_block, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, h = (pair // heads).to(tl.int64), pair % heads
    numbers, exists = row_numbers(rows, row_block * BLOCK_M + tl.arange(0, BLOCK_M))
    columns = key_block * BLOCK_N + tl.arange(0, BLOCK_N)
    visible, added = visible_tile(numbers, exists, columns, b, h, call, CAUSAL)
    plain = (visible & (added == 0.0)) | ~exists[:, None]
    some = tl.max(tl.max(visible.to(tl.int32), 1), 0)
    whole = tl.min(tl.min(plain.to(tl.int32), 1), 0)
    at = (pair.to(tl.int64) * tl.num_programs(1) + row_block) * tl.num_programs(0) + key_block
    tl.store(kinds + at, (some + some * whole).to(tl.int8))


@triton.jit
def own_keys_kernel(own, mask, heads, queries, keys, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """own [B', H', Lq]: the last key that the mask shows a row, -1 for none."""
    pair = tl.program_id(1)
    b, h = (pair // heads).to(tl.int64), pair % heads
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = (rows < queries)[:, None]
    last = tl.full([BLOCK_M], -1, tl.int32)
    for start in range(0, keys, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        inside = exists & (columns < keys)[None, :]
        visible, _ = shown(inside, b, h, rows[:, None].to(tl.int64), columns, mask, None)
        last = tl.maximum(last, tl.max(tl.where(visible, columns[None, :], -1), 1))
    tl.store(own + pair.to(tl.int64) * queries + rows, last, mask=rows < queries)


@operator("block_map")
def _block_map(tensors: list[Tensor | None], tile: Sequence[int], causal: bool) -> list[Tensor]:
    scoring = Scoring.of(tensors, tile)
    shape = _map_shape(scoring)
    kinds = torch.empty(shape, dtype=torch.int8, device=scoring.q.device)
    batch, heads, row_blocks, key_blocks = shape
    if kinds.numel():
        kinds_kernel[(key_blocks, row_blocks, batch * heads)](
            kinds,
            scoring.rows_arg(),
            scoring.call_arg(1.0, None),
            heads,
            CAUSAL=causal and scoring.mask is None,
            BLOCK_M=scoring.tile.rows,
            BLOCK_N=scoring.tile.keys,
            num_warps=4,
            **FUSED,
        )
    order = kinds.argsort(dim=-1, descending=True, stable=True)
    counts = torch.stack([(kinds == 2).sum(-1), (kinds > 0).sum(-1)], -1)
    return [order.int(), counts.int()]


@_block_map.register_fake
def _(tensors: list[Tensor | None], tile: Sequence[int], causal: bool) -> list[Tensor]:
    scoring = Scoring.of(tensors, tile)
    shape = _map_shape(scoring)
    return [scoring.q.new_empty((*shape[:3], last), dtype=torch.int32) for last in (shape[3], 2)]


def _map_shape(scoring: Scoring) -> tuple[int, int, int, int]:
    """[B', H', row blocks, key blocks]; B' and H' are 1 where what is visible is the same for all."""
    s, tile = scoring, scoring.tile
    parts = (s.mask, s.row_bits, s.column_bits, s.span, s.early, s.own)
    batch = max(part.shape[0] for part in parts if part is not None)
    heads = max(1 if part is None else part.shape[1] for part in (scoring.mask, scoring.span))
    return batch, heads, -(-scoring.rows // tile.rows), -(-scoring.k.shape[2] // tile.keys)


@operator("own_keys")
def own_keys(mask: Tensor) -> Tensor:
    """The last key that a mask [B', H', Lq, Lk] shows each row, [B', H', Lq] int32; -1 for none."""
    batch, heads, queries, keys = mask.shape
    own = torch.empty(batch, heads, queries, dtype=torch.int32, device=mask.device)
    own_keys_kernel[(triton.cdiv(queries, 32), batch * heads)](
        own, mask_arg(mask), heads, queries, keys, BLOCK_M=32, BLOCK_N=128, num_warps=4, **FUSED
    )
    return own


@own_keys.register_fake
def _(mask: Tensor) -> Tensor:
    return mask.new_empty(mask.shape[:3], dtype=torch.int32)


def with_block_map(scoring: Scoring, causal: bool) -> Scoring:
    """The same rows with their block map, where mask, unmask or windows decide what is visible."""
    if not scoring.restricted():
        return scoring
    deciding = scoring._replace(
        v=None, slope=None, gain=None, head_gain=None, bias=None, value_gain=None, chosen=None
    )
    tensors = [part for part in deciding.tensors[2:] if part is not None]
    present = tuple(part is not None for part in deciding.tensors)
    key = (present, scoring.q.shape[2], scoring.k.shape[2], causal, scoring.tile)
    order, counts = remember(
        "block_map", tensors, key, lambda: _block_map(deciding.tensors, deciding.tile, causal)
    )
    return scoring._replace(order=order, counts=counts)


def other_rows(index: Tensor, queries: int) -> Tensor:
    """The rows of 0..queries-1 that `index` [R] does not name, increasing; does not wait for the device."""

    def make() -> Tensor:
        named = torch.zeros(queries, dtype=torch.uint8, device=index.device)
        named[index] = 1
        return named.argsort(stable=True)[: queries - len(index)]

    return remember("other_rows", [index], queries, make)


T = TypeVar("T")
_kept: deque[tuple[Hashable, list[Any], list[int], Any]] = deque(maxlen=32)


def remember(name: str, tensors: Sequence[Tensor], key: Hashable, make: Callable[[], T]) -> T:
    """What `make` gives, made once for layers that share the very same unchanged `tensors`.

    Nothing is kept where a change could go unseen: for inference tensors, which count no changes, inside a
    CUDA graph, which replays with other values, and inside a compiled graph, which owns its buffers.
    """
    if torch.compiler.is_compiling() or any(t.is_inference() for t in tensors) or _capturing(tensors):
        return make()
    versions = [t._version for t in tensors]  # noqa: SLF001 (torch counts changes in place there)
    for kept_key, refs, kept_versions, value in tuple(_kept):
        same = kept_key == (name, key) and len(refs) == len(tensors) and kept_versions == versions
        if same and all(ref() is t for ref, t in zip(refs, tensors, strict=True)):
            return value
    value = make()
    _kept.appendleft(((name, key), [weakref.ref(t) for t in tensors], versions, value))
    return value


def _capturing(tensors: Sequence[Tensor]) -> bool:
    return any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing()
