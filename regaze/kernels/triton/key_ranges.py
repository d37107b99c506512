"""Which keys a query row sees at all. The splits of a decode call divide this range among them.

`range_kernel` reads a mask once, for all layers that share it. Without a mask a row may see all keys; where
every head has a window, the keys between the first ones and the windows are skipped.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.triton.arguments import mask_arg, unmask_arg
from regaze.kernels.triton.common import mask_tile, unmask_row_bits, visible_tile
from regaze.kernels.triton.custom_op import FUSED, operator


@triton.jit(do_not_specialize=["num_keys"])
def range_kernel(ranges_ptr, mask, unmask, num_keys, BLOCK_N: tl.constexpr):
    """The result of `visible_ranges`, one row of the mask per program."""
    row, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = row + tl.arange(0, 1)
    row_bits = unmask_row_bits(unmask, batch, rows)
    first, end, own_key = num_keys, 0, -1
    for start in range(0, num_keys, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        inside = (columns < num_keys)[None, :]
        shown, _ = mask_tile(inside, batch, head, rows[:, None], columns, mask, None)
        visible, _ = visible_tile(inside, batch, head, rows[:, None], columns, mask, unmask, row_bits, None)
        first = tl.minimum(first, tl.min(tl.where(visible, columns[None, :], num_keys)))
        end = tl.maximum(end, tl.max(tl.where(visible, columns[None, :] + 1, 0)))
        own_key = tl.maximum(own_key, tl.max(tl.where(shown, columns[None, :], -1)))
    range_ptr = ranges_ptr + ((batch * tl.num_programs(1) + head) * tl.num_programs(0) + row) * 3
    tl.store(range_ptr, first)
    tl.store(range_ptr + 1, end)
    tl.store(range_ptr + 2, own_key)


@triton.jit
def visible_range(ranges, row_exists, batch, heads, rows, num_queries, num_keys):
    """First and end of the keys that any of the rows [M, 1] sees, and the key of each row itself [M, 1]."""
    if ranges.ptr is not None:
        ptrs = ranges.ptr + rows * 3
        if ranges.stride_b is not None:
            ptrs += batch * ranges.stride_b
        if ranges.stride_h is not None:
            ptrs += heads * ranges.stride_h
        first = tl.min(tl.min(tl.where(row_exists, tl.load(ptrs), num_keys), 1), 0)
        end = tl.max(tl.max(tl.where(row_exists, tl.load(ptrs + 1), 0), 1), 0)
        return first, end, tl.load(ptrs + 2)
    else:
        return 0, num_keys, rows + (num_keys - num_queries)


@triton.jit
def window_range(windows, row_exists, batch, heads, own_key, first, end, BLOCK_N: tl.constexpr):
    """Where windows let a tile skip the keys in between.

    Returns how many blocks of keys from `first` on hold the first keys, which stay visible, the key from
    which on the blocks of the windows start, and the number of all blocks.
    """
    if windows.span_ptr is not None:
        span_ptrs = windows.span_ptr + heads
        if windows.stride_b is not None:
            span_ptrs += batch * windows.stride_b
        window_starts = tl.where(row_exists, own_key - tl.load(span_ptrs) + 1, end)
        window_start = tl.min(tl.min(window_starts, 1), 0).to(tl.int32)
        sink_end = tl.load(windows.sink_end_ptr + batch).to(tl.int32)
        sink_blocks = tl.cdiv(tl.maximum(tl.minimum(sink_end, end) - first, 0), BLOCK_N)
        window_start = tl.maximum(window_start, first + sink_blocks * BLOCK_N)
    else:
        sink_blocks, window_start = 0, first
    return sink_blocks, window_start, sink_blocks + tl.cdiv(tl.maximum(end - window_start, 0), BLOCK_N)


@operator("visible_ranges")
def visible_ranges(mask: Tensor, row_bits: Tensor | None, column_bits: Tensor | None) -> Tensor:
    """[B', H', Lq, 3] int32: first key and end of the keys that a row sees, last key that the mask shows it.

    B' and H' are 1 where neither mask nor unmask differ by sample or by head.
    """
    ranges = _ranges_like(mask, row_bits, column_bits)
    batch, heads, queries, _ = ranges.shape
    unmask = unmask_arg(row_bits, column_bits)
    range_kernel[(queries, heads, batch)](
        ranges, mask_arg(mask), unmask, mask.shape[3], BLOCK_N=1024, num_warps=4, **FUSED
    )
    return ranges


@visible_ranges.register_fake
def _ranges_like(mask: Tensor, row_bits: Tensor | None, column_bits: Tensor | None) -> Tensor:
    batch = max(t.shape[0] for t in (mask, row_bits, column_bits) if t is not None)
    return mask.new_empty(batch, mask.shape[1], mask.shape[2], 3, dtype=torch.int32)
