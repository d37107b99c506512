"""Block map: which blocks of keys a block of query rows has to visit, found once per mask.

A mask [B, H, Lq, Lk] hides most keys in whole blocks: those after a causal row, padding, all outside a
sliding window. One small kernel reads the mask once and tells of each block whether it is empty, partly or
fully visible. Per row block the map lists the fully visible key blocks, for which a kernel reads no mask at
all, and after them the partly visible ones. Of empty blocks, which are not listed, neither keys nor mask are
read again.

A map belongs to one row list, since the blocks of the edited rows are not those of all rows. The layers that
share a mask share its map.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def,attr-defined"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.triton.arguments import mask_arg
from regaze.kernels.triton.common import mask_tile
from regaze.kernels.triton.custom_op import FUSED, ROOMY, operator
from regaze.kernels.triton.row_list import RowList, load_row_numbers, row_visibility
from regaze.kernels.triton.shared_results import remember

#: Kinds of blocks: nothing visible, something, all of it without an additive mask.
PARTIAL, FULL = 1, 2


#: Rows and keys that a program looks at together; blocks of any size are divided into these.
TILE = 32


@triton.jit(do_not_specialize=["num_heads", "block_m", "block_n"])
def block_kinds_kernel(
    kinds_ptr, row_list, score, num_heads, block_m, block_n, IS_CAUSAL: tl.constexpr, TILE: tl.constexpr
):
    """kinds [B', H', row blocks, key blocks]: 0 empty, 1 partly visible, 2 fully visible, nothing added."""
    key_block, row_block, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (pair // num_heads).to(tl.int64), pair % num_heads
    any_visible, all_plain = 0, 1
    for m in range(0, block_m, TILE):
        in_rows = m + tl.arange(0, TILE)
        rows, row_exists = load_row_numbers(row_list, row_block * block_m + in_rows)
        row_exists = row_exists & (in_rows < block_m)
        for n in range(0, block_n, TILE):
            in_columns = n + tl.arange(0, TILE)
            columns = tl.where(in_columns < block_n, key_block * block_n + in_columns, -1)
            visible, added = row_visibility(rows, row_exists, columns, batch, head, score, IS_CAUSAL)
            # Padding rows do not make a block partial, nor do columns of the next block.
            is_none = ~row_exists[:, None] | (columns < 0)[None, :]
            is_plain = (visible & (added == 0.0)) | is_none
            any_visible = tl.maximum(any_visible, tl.max(tl.max(visible.to(tl.int32), 1), 0))
            all_plain = tl.minimum(all_plain, tl.min(tl.min(is_plain.to(tl.int32), 1), 0))
    block = (pair.to(tl.int64) * tl.num_programs(1) + row_block) * tl.num_programs(0) + key_block
    tl.store(kinds_ptr + block, (any_visible + any_visible * all_plain).to(tl.int8))


@triton.jit(do_not_specialize=["num_heads", "num_queries", "num_keys"])
def own_keys_kernel(
    own_keys_ptr, mask, num_heads, num_queries, num_keys, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """own_keys [B', H', Lq]: the last key that the mask shows a row, -1 for none."""
    pair = tl.program_id(1)
    batch, head = (pair // num_heads).to(tl.int64), pair % num_heads
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_exists = (rows < num_queries)[:, None]
    last = tl.full([BLOCK_M], -1, tl.int32)
    for start in range(0, num_keys, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        inside = row_exists & (columns < num_keys)[None, :]
        visible, _ = mask_tile(inside, None, batch, head, rows[:, None], columns, mask, None)
        last = tl.maximum(last, tl.max(tl.where(visible, columns[None, :], -1), 1))
    tl.store(own_keys_ptr + pair.to(tl.int64) * num_queries + rows, last, mask=rows < num_queries)


@operator("block_map")
def _block_map(tensors: list[Tensor | None], tiling: Sequence[int], causal: bool) -> list[Tensor]:
    rows = RowList.of(tensors, tiling)
    batch, heads, row_blocks, key_blocks = shape = _map_shape(rows)
    kinds = torch.empty(shape, dtype=torch.int8, device=rows.query.device)
    if kinds.numel():
        block_kinds_kernel[(key_blocks, row_blocks, batch * heads)](
            kinds,
            rows.rows_arg(),
            rows.score_arg(1.0, None),
            heads,
            rows.tiling.block_m,
            rows.tiling.block_n,
            IS_CAUSAL=causal and rows.mask is None,
            TILE=TILE,
            num_warps=4,
            **ROOMY,
        )
    order = kinds.argsort(dim=-1, descending=True, stable=True)
    counts = torch.stack([(kinds == FULL).sum(-1), (kinds >= PARTIAL).sum(-1)], -1)
    return [order.int(), counts.int()]


@_block_map.register_fake
def _(tensors: list[Tensor | None], tiling: Sequence[int], causal: bool) -> list[Tensor]:
    rows = RowList.of(tensors, tiling)
    shape = _map_shape(rows)
    return [rows.query.new_empty((*shape[:3], last), dtype=torch.int32) for last in (shape[3], 2)]


def _map_shape(rows: RowList) -> tuple[int, int, int, int]:
    """[B', H', row blocks, key blocks]; B' and H' are 1 where visibility is the same for all."""
    parts = (rows.mask, rows.row_bits, rows.column_bits, rows.span, rows.sink_end, rows.own_key)
    batch = max(part.shape[0] for part in parts if part is not None)
    heads = max(1 if part is None else part.shape[1] for part in (rows.mask, rows.span))
    tiling = rows.tiling
    return batch, heads, -(-rows.num_rows // tiling.block_m), -(-rows.key.shape[2] // tiling.block_n)


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


def with_block_map(rows: RowList, causal: bool) -> RowList:
    """The same rows with their block map, where mask, unmask or windows decide what is visible."""
    if not rows.needs_block_map:
        return rows
    deciding = rows._replace(
        value=None,
        score_slope=None,
        score_gain=None,
        head_score_gain=None,
        bias=None,
        value_gain=None,
        selected=None,
    )
    tensors = [part for part in deciding.tensors[2:] if part is not None]
    present = tuple(part is not None for part in deciding.tensors)
    key = (present, rows.query.shape[2], rows.key.shape[2], causal, rows.tiling)
    order, counts = remember(
        "block_map", tensors, key, lambda: _block_map(deciding.tensors, deciding.tiling, causal)
    )
    return rows._replace(order=order, counts=counts)


def other_rows(index: Tensor, queries: int) -> Tensor:
    """The rows of 0..queries-1 that `index` [R] does not name, increasing; does not wait for the device."""

    def make() -> Tensor:
        named = torch.zeros(queries, dtype=torch.uint8, device=index.device)
        named[index] = 1
        return named.argsort(stable=True)[: queries - len(index)]

    return remember("other_rows", [index], queries, make)
