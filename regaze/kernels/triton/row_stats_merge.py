"""The second half of row_stats.py: splits merged, statistics written, the policy run on the masses."""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from regaze.kernels.triton.common import LOG2E, load_sinks, varied
from regaze.kernels.triton.row_list import load_row_numbers

#: Larger than any column.
NO_COLUMN = tl.constexpr(0x7FFFFFFF)


class PartialStatsArg(NamedTuple):
    """Sums of each split, [splits, B, Hq, R] and masses [splits, B, Hq, R, K]; None: not computed."""

    running_max: Any
    running_sum: Any
    spread: Any
    top_column: Any
    masses: Any


class RowStatsArg(NamedTuple):
    """Where the merged sums go, [B, Hq, R] and [B, Hq, R, K]; None: not requested. See `RowStats`."""

    shift: Any
    total: Any
    entropy: Any
    top_weight: Any
    top_column: Any
    masses: Any
    coefficients: Any
    stats_masses: Any


@triton.jit
def _max_of_splits(partial, place, row_exists, stride_s, num_splits, BLOCK_M: tl.constexpr):
    """Maximum [M] over the splits, and its column, the first of equals."""
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    top_column = tl.full([BLOCK_M], NO_COLUMN, tl.int32)
    for s in range(num_splits):
        split_max = tl.load(partial.running_max + s * stride_s + place, mask=row_exists, other=float("-inf"))
        if partial.top_column is not None:
            column_ptrs = partial.top_column + s * stride_s + place
            column = tl.load(column_ptrs, mask=row_exists, other=NO_COLUMN)
            is_better = (split_max > row_max) | ((split_max == row_max) & (column < top_column))
            top_column = tl.where(is_better, column, top_column)
        row_max = tl.maximum(row_max, split_max)
    return row_max, top_column


@triton.jit
def _sum_of_splits(
    partial, place, row_exists, shift, stride_s, num_splits,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sum and spread [M] of all splits relative to `shift` [M]."""
    keys_sum = tl.zeros([BLOCK_M], tl.float32)
    spread = keys_sum
    for s in range(num_splits):
        here = s * stride_s + place
        split_max = tl.load(partial.running_max + here, mask=row_exists, other=float("-inf"))
        scale = tl.exp2((split_max - shift) * LOG2E)
        part = scale * tl.load(partial.running_sum + here, mask=row_exists, other=0.0)
        keys_sum += part
        if partial.spread is not None:
            fall = tl.where(part > 0, split_max - shift, 0.0)
            spread += scale * tl.load(partial.spread + here, mask=row_exists, other=0.0) + part * fall
    return keys_sum, spread


@triton.jit
def _masses_of_splits(
    partial, place, row_exists, shift, stride_s, num_splits,
    BLOCK_M: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr, ALL: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Masses [M, WIDTH] of COUNT of ALL channels, from channel FIRST on, relative to `shift` [M]."""
    k = tl.arange(0, WIDTH)[None, :]
    masses = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for s in range(num_splits):
        here = s * stride_s + place
        split_max = tl.load(partial.running_max + here, mask=row_exists, other=float("-inf"))
        ptrs = partial.masses + here[:, None] * ALL + FIRST + k
        part = tl.load(ptrs, mask=row_exists[:, None] & (k < COUNT), other=0.0)
        masses += tl.exp2((split_max - shift) * LOG2E)[:, None] * part
    return masses


@triton.jit(do_not_specialize=["num_splits"])
def row_stats_merge_kernel(
    merged, partial, active_ptr, sinks, numbers_ptr, row_list, num_splits,
    BLOCK_M: tl.constexpr, NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    STATS_CHANNELS: tl.constexpr, STATS_WIDTH: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """All splits of BLOCK_M rows of one head: their statistics, and coefficients from their masses."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    offsets = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, row_exists = load_row_numbers(row_list, offsets)
    num_rows = varied(row_list.length)
    stride_s = tl.num_programs(2) * tl.num_programs(1) * num_rows
    place = (batch * tl.num_programs(1) + head) * num_rows + offsets

    row_max, top_column = _max_of_splits(partial, place, row_exists, stride_s, num_splits, BLOCK_M)
    shift = row_max
    if sinks is not None:
        sink = load_sinks(sinks, batch, head, rows)
        shift = tl.maximum(row_max, sink)
    safe_shift = tl.where(shift == float("-inf"), 0.0, shift)  # -inf - -inf would be NaN
    keys_sum, spread = _sum_of_splits(partial, place, row_exists, safe_shift, stride_s, num_splits, BLOCK_M)
    total = keys_sum
    if sinks is not None:
        total += tl.exp2((sink - safe_shift) * LOG2E)
    denominator = tl.maximum(total, 1.0)  # it has the 1 of the strongest key or sink, unless there is none
    whole_inverse = 1.0 / denominator
    inverse = whole_inverse
    if active_ptr is not None:
        active = tl.load(active_ptr + batch * num_rows + offsets, mask=row_exists, other=0) != 0
        inverse = tl.where(active, inverse, 0.0)

    tl.store(merged.shift + place, shift, mask=row_exists)
    tl.store(merged.total + place, total, mask=row_exists)
    if merged.entropy is not None:
        entropy = (keys_sum * tl.log(denominator) - spread) * inverse
        tl.store(merged.entropy + place, tl.maximum(entropy, 0.0), mask=row_exists)
    if merged.top_weight is not None:
        weight = tl.exp2((row_max - safe_shift) * LOG2E) * inverse
        tl.store(merged.top_weight + place, weight, mask=row_exists)
        column = tl.where(weight > 0, top_column, 0).to(tl.int64)
        tl.store(merged.top_column + place, column, mask=row_exists)
    if STATS_CHANNELS > 0:
        masses = _masses_of_splits(
            partial, place, row_exists, safe_shift, stride_s, num_splits,
            BLOCK_M, NUM_CHANNELS, STATS_CHANNELS, NUM_CHANNELS + STATS_CHANNELS, STATS_WIDTH,
        )  # fmt: skip
        k = tl.arange(0, STATS_WIDTH)[None, :]
        ptrs = merged.stats_masses + place[:, None] * STATS_CHANNELS + k
        tl.store(ptrs, masses * inverse[:, None], mask=row_exists[:, None] & (k < STATS_CHANNELS))
    if NUM_CHANNELS > 0:
        masses = whole_inverse[:, None] * _masses_of_splits(
            partial, place, row_exists, safe_shift, stride_s, num_splits,
            BLOCK_M, 0, NUM_CHANNELS, NUM_CHANNELS + STATS_CHANNELS, WIDTH,
        )  # fmt: skip
        k = tl.arange(0, WIDTH)[None, :]
        in_bounds = row_exists[:, None] & (k < NUM_CHANNELS)
        if merged.masses is not None:
            tl.store(merged.masses + place[:, None] * NUM_CHANNELS + k, masses, mask=in_bounds)
        if merged.coefficients is not None:
            heads = tl.zeros([BLOCK_M, 1], tl.int32) + head
            coefficients = POLICY(masses, heads, row_exists[:, None], numbers_ptr, WIDTH)
            tl.store(merged.coefficients + place[:, None] * NUM_CHANNELS + k, coefficients, mask=in_bounds)
