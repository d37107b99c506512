"""Which keys a query row sees at all. The splits of a decode call divide this range among them.

A row sees a run of keys, and in most rows that run has no holes: the mask is then read once and never again
by the loops over keys. Where one row of a short mask serves a whole tile, each program of the split kernel
scans it, which takes less time than another launch. Else `range_kernel` reads the mask, the chunks of a row
in parallel, once for all layers that share it. Without a mask a row may see all keys; where every head has a
window, the keys between the first ones and the windows are skipped.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.triton.arguments import mask_arg, unmask_arg
from regaze.kernels.triton.common import mask_tile, unmask_row_bits, varied, visible_tile
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.shared_results import remember

#: The longest mask that the programs of the split kernel scan by themselves, in keys.
SCANNED_KEYS = 4096

#: Keys of one step of a scan.
SCAN_BLOCK = tl.constexpr(1024)

#: Programs of `range_kernel` that share the keys of a row.
CHUNKS = tl.constexpr(16)

#: What a chunk says: first visible key, end of the visible ones, last key that the mask shows, number of
#: visible keys, and whether the mask adds to any score.
FIELDS = tl.constexpr(5)


@triton.jit
def scan_keys(start, stop, num_keys, batch, head, row, mask, unmask, row_bits):
    """The `FIELDS` of the keys start, .., stop - 1 in one row of the mask."""
    rows = row + tl.arange(0, 1)
    first, end, own_key, count, is_soft = num_keys, 0, -1, 0, 0
    for block in range(start, stop, SCAN_BLOCK):
        columns = block + tl.arange(0, SCAN_BLOCK)
        inside = (columns < stop)[None, :]
        shown, _ = mask_tile(inside, None, batch, head, rows[:, None], columns, mask, None)
        visible, added = visible_tile(
            inside, None, batch, head, rows[:, None], columns, mask, unmask, row_bits, None
        )
        first = tl.minimum(first, tl.min(tl.where(visible, columns[None, :], num_keys)))
        end = tl.maximum(end, tl.max(tl.where(visible, columns[None, :] + 1, 0)))
        own_key = tl.maximum(own_key, tl.max(tl.where(shown, columns[None, :], -1)))
        count += tl.sum(visible.to(tl.int32))
        is_soft = tl.maximum(is_soft, tl.max((visible & (added != 0)).to(tl.int32)))
    return first, end, own_key, count, is_soft


@triton.jit(do_not_specialize=["num_keys"])
def range_kernel(ranges_ptr, mask, unmask, num_keys):
    """The result of `visible_ranges`, one chunk of one row of the mask per program."""
    row, chunk = tl.program_id(0) // CHUNKS, tl.program_id(0) % CHUNKS
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row_bits = unmask_row_bits(unmask, batch, row + tl.arange(0, 1))
    share = tl.cdiv(num_keys, CHUNKS)
    start = chunk * share
    stop = tl.minimum(start + share, num_keys)
    first, end, own_key, count, is_soft = scan_keys(
        start, stop, num_keys, batch, head, row, mask, unmask, row_bits
    )
    place = (batch * tl.num_programs(1) + head) * (tl.num_programs(0) // CHUNKS) + row
    ptr = ranges_ptr + place * (FIELDS * CHUNKS) + chunk
    tl.store(ptr, first)
    tl.store(ptr + CHUNKS, end)
    tl.store(ptr + 2 * CHUNKS, own_key)
    tl.store(ptr + 3 * CHUNKS, count)
    tl.store(ptr + 4 * CHUNKS, is_soft)


@triton.jit
def visible_range(ranges, mask, unmask, row_exists, batch, heads, rows, num_queries, num_keys):
    """Of rows [M, 1]: first and end of the keys they see, their own keys, whether holes are among these.

    Each is [M, 1], or [1, 1] or a scalar where all rows agree. Without `ranges`, all rows see what row 0 of
    the mask shows.
    """
    if ranges.ptr is not None:
        ptrs = ranges.ptr + rows * (FIELDS * CHUNKS) + tl.arange(0, CHUNKS)[None, :]
        if ranges.stride_b is not None:
            ptrs += batch * varied(ranges.stride_b)
        if ranges.stride_h is not None:
            ptrs += heads * varied(ranges.stride_h)
        first = tl.min(tl.load(ptrs), 1)[:, None]
        end = tl.max(tl.load(ptrs + CHUNKS), 1)[:, None]
        own_key = tl.max(tl.load(ptrs + 2 * CHUNKS), 1)[:, None]
        count = tl.sum(tl.load(ptrs + 3 * CHUNKS), 1)[:, None]
        is_soft = tl.max(tl.load(ptrs + 4 * CHUNKS), 1)[:, None]
        first = tl.where(row_exists, first, num_keys)
        end = tl.where(row_exists, end, 0)
        return first, end, own_key, (count < end - first) | (is_soft > 0)
    elif mask.ptr is not None:
        row_bits = unmask_row_bits(unmask, batch, tl.arange(0, 1))
        first, end, own_key, count, is_soft = scan_keys(
            0, num_keys, num_keys, batch, 0, 0, mask, unmask, row_bits
        )
        nothing = tl.zeros([1, 1], tl.int32)
        return first, end, own_key, (count + nothing < end - first) | (is_soft + nothing > 0)
    else:
        return 0, num_keys, rows + (num_keys - num_queries), None


@triton.jit
def tile_range(ranges, row_first, row_end):
    """First and end of the keys that any of the rows sees, from the results of `visible_range`."""
    if ranges.ptr is not None:
        row_first, row_end = tl.min(tl.min(row_first, 1), 0), tl.max(tl.max(row_end, 1), 0)
    return row_first, row_end


@triton.jit
def keys_inside(ranges, columns, end, row_exists, row_first, row_end):
    """Which of the keys [N] any row sees, and which [M, N] lie in the range of each row [M, 1]."""
    key_exists = columns < end
    inside = row_exists & key_exists[None, :]
    if ranges.ptr is not None:
        inside = inside & (columns[None, :] >= row_first) & (columns[None, :] < row_end)
    return key_exists, inside


@triton.jit
def window_range(
    windows, row_exists, batch, heads, own_key, first, end, BLOCK_N: tl.constexpr, IS_PAGED: tl.constexpr
):  # fmt: skip
    """Where windows let a tile skip the keys in between.

    IS_PAGED: all blocks are to start at multiples of BLOCK_N, so that none crosses the border of a page.
    Returns how many blocks of keys from `first` on hold the first keys, which stay visible, the key from
    which on the blocks of the windows start, and the number of all blocks.
    """
    if windows.span_ptr is not None:
        span_ptrs = windows.span_ptr + heads
        if windows.stride_b is not None:
            span_ptrs += batch * varied(windows.stride_b)
        window_starts = tl.where(row_exists, own_key - tl.load(span_ptrs) + 1, end)
        window_start = tl.min(tl.min(window_starts, 1), 0).to(tl.int32)
        if IS_PAGED:
            window_start = tl.maximum(window_start, 0) // BLOCK_N * BLOCK_N
        sink_end = tl.load(windows.sink_end_ptr + batch).to(tl.int32)
        sink_blocks = tl.cdiv(tl.maximum(tl.minimum(sink_end, end) - first, 0), BLOCK_N)
        window_start = tl.maximum(window_start, first + sink_blocks * BLOCK_N)
    else:
        sink_blocks, window_start = 0, first
    return sink_blocks, window_start, sink_blocks + tl.cdiv(tl.maximum(end - window_start, 0), BLOCK_N)


@operator("visible_ranges")
def visible_ranges(mask: Tensor, row_bits: Tensor | None, column_bits: Tensor | None) -> Tensor:
    """[B', H', Lq, FIELDS, CHUNKS] int32: what every chunk of the keys says of a row, see `FIELDS`.

    B' and H' are 1 where neither mask nor unmask differ by sample or by head.
    """
    ranges = _ranges_like(mask, row_bits, column_bits)
    batch, heads, queries = ranges.shape[:3]
    range_kernel[(queries * CHUNKS.value, heads, batch)](
        ranges, mask_arg(mask), unmask_arg(row_bits, column_bits), mask.shape[3], num_warps=4, **FUSED
    )
    return ranges


@visible_ranges.register_fake
def _ranges_like(mask: Tensor, row_bits: Tensor | None, column_bits: Tensor | None) -> Tensor:
    batch = max(t.shape[0] for t in (mask, row_bits, column_bits) if t is not None)
    shape = batch, mask.shape[1], mask.shape[2], FIELDS.value, CHUNKS.value
    return mask.new_empty(shape, dtype=torch.int32)


def ranges_of(mask: Tensor | None, row_bits: Tensor | None, column_bits: Tensor | None) -> Tensor | None:
    """`visible_ranges` where a call needs them, once for the layers that share a mask."""
    if mask is None or not needs_ranges(mask):
        return None
    tensors = [part for part in (mask, row_bits, column_bits) if part is not None]
    return remember("visible_ranges", tensors, None, lambda: visible_ranges(mask, row_bits, column_bits))


def needs_ranges(mask: Tensor | None) -> bool:
    """Whether a mask [B or 1, Hq or 1, Lq, Lk] is read by `visible_ranges` before the split kernel."""
    if mask is None:
        return False
    one_row = mask.shape[1] == mask.shape[2] == 1
    return not one_row or mask.shape[3] > SCANNED_KEYS
