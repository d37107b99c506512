"""Rows that the split kernel finishes itself: where one split reads all keys, nothing is left to merge.

With enough samples and key heads to fill the device, a row has one split. If its policy runs inside a kernel,
the program that has the sums of its rows also has all that `decode_merge_kernel` would read back: it runs the
policy, and writes output and statistics. That saves a launch and the way of the sums through memory; the
arithmetic is that of a merge of one split.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from regaze.kernels.triton.arguments import MatrixArg, PerRowArg, SinkArg
from regaze.kernels.triton.common import LN2, LOG2E, TINY, load_sinks, per_row_place, round_to, varied
from regaze.kernels.triton.merge import PolicyArg, StatsArg


class WholeArg(NamedTuple):
    """Where finished rows go, and what finishing needs; as the arguments of `decode_merge_kernel`.

    `index_ptr` [R] (None: all) and `active_ptr` [B, R] are the rows to report statistics of.
    """

    out: MatrixArg | None
    stats: StatsArg
    policy: PolicyArg
    sinks: SinkArg | None
    stats_sinks: SinkArg | None
    head_gain: PerRowArg | None
    index_ptr: Any
    active_ptr: Any
    num_stats_rows: int


@triton.jit
def whole_softmax(row_max, row_sum, sinks, batch, heads, rows):
    """Of rows [M]: the shift that their denominators are relative to, the factor that brings sums to it, the
    sum of the keys, and the denominator, with the sinks.
    """
    shift = row_max
    if sinks is not None:
        sink = load_sinks(sinks, batch, heads, rows)
        shift = tl.maximum(shift, sink)
    shift = tl.where(shift == float("-inf"), 0.0, shift)  # a row without keys; -inf - -inf would be NaN
    factor = tl.exp2((row_max - shift) * LOG2E)
    keys_sum = factor * row_sum
    denominator = keys_sum
    if sinks is not None:
        denominator += tl.exp2((sink - shift) * LOG2E)
    return shift, factor, keys_sum, denominator


@triton.jit
def finish_output(
    whole, row_max, row_sum, masses, output, is_selected, batch, heads, rows, row_exists,
    VALUE_DIM: tl.constexpr, NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_DV: tl.constexpr,
    POLICY: tl.constexpr,
):  # fmt: skip
    """Write M rows of the output from their sums: masses [WIDTH, M] and outputs [WIDTH * M, BLOCK_DV]."""
    BLOCK_M: tl.constexpr = row_exists.shape[0]
    head, row = tl.reshape(heads, [BLOCK_M]), tl.reshape(rows, [BLOCK_M])
    _, factor, _, denominator = whole_softmax(row_max, row_sum, whole.sinks, batch, head, row)
    factor *= tl.where(denominator > 0, 1.0 / denominator, 0.0)
    result = tl.reshape(output, [WIDTH, BLOCK_M, BLOCK_DV]) * factor[None, :, None]
    if NUM_CHANNELS > 0:
        row_masses = tl.trans(masses * factor[None, :])
        coefficients = POLICY(row_masses, heads, row_exists[:, None], whole.policy.numbers_ptr, WIDTH)
        # All weights of a row that is not selected are in channel 0.
        unedited = (tl.arange(0, WIDTH)[None, :] == 0).to(tl.float32)
        coefficients = tl.where(is_selected, coefficients, unedited)
        result *= tl.trans(coefficients)[:, :, None]
    result = tl.sum(result, 0)
    if whole.head_gain is not None:
        gain_ptrs = per_row_place(whole.head_gain, batch, heads, rows)
        result *= tl.load(gain_ptrs, mask=row_exists[:, None], other=0.0).to(tl.float32)
    out, d = whole.out, tl.arange(0, BLOCK_DV)[None, :]
    out_ptrs = out.ptr + batch * out.stride_b + heads.to(tl.int64) * out.stride_h + rows * out.stride_l + d
    in_bounds = row_exists[:, None] & (d < VALUE_DIM)
    tl.store(out_ptrs, round_to(result, out.ptr.dtype.element_ty), mask=in_bounds)


@triton.jit
def finish_stats(
    whole, state, batch, heads, rows, row_exists, num_heads, NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr
):
    """Write statistics of those of the M rows that are to be reported on; `state` is that of `stats_step`."""
    BLOCK_M: tl.constexpr = row_exists.shape[0]
    row_max, row_sum, below, top_column, mass_parts = state
    head, row = tl.reshape(heads, [BLOCK_M]), tl.reshape(rows, [BLOCK_M])
    shift, factor, keys_sum, denominator = whole_softmax(
        row_max, row_sum, whole.stats_sinks, batch, head, row
    )
    inverse = tl.where(denominator > 0, 1.0 / denominator, 0.0)
    log_denominator = tl.log2(tl.maximum(denominator, TINY)) * LN2
    lse = tl.where(denominator > 0, shift + log_denominator, float("-inf"))
    below += tl.where(row_sum > 0, (row_max - shift) * row_sum, 0.0)
    entropy = log_denominator * keys_sum * inverse - factor * inverse * below
    weight = factor * inverse
    stats, num_rows = whole.stats, varied(whole.num_stats_rows)
    for r in range(num_rows):
        number, active = r, r >= 0
        if whole.index_ptr is not None:
            number = tl.load(whole.index_ptr + r).to(tl.int32)
        if whole.active_ptr is not None:
            active = tl.load(whole.active_ptr + batch * num_rows + r) != 0
        found = row_exists & (row == number)
        reports = active & (keys_sum > 0)
        place = (batch * num_heads + head) * num_rows + r
        if stats.shift is not None:
            tl.store(stats.shift + place, shift, mask=found)
            tl.store(stats.total + place, denominator, mask=found)
        if stats.lse is not None:
            tl.store(stats.lse + place, tl.where(active, lse, 0.0), mask=found)
        if stats.entropy is not None:
            tl.store(stats.entropy + place, tl.where(reports, entropy, 0.0), mask=found)
        if stats.top_weight is not None:
            tl.store(stats.top_weight + place, tl.where(reports, weight, 0.0), mask=found)
            column = tl.where(reports, top_column, 0).to(tl.int64)
            tl.store(stats.top_column + place, column, mask=found)
        if NUM_CHANNELS > 0:
            k = tl.arange(0, WIDTH)[None, :]
            masses = tl.sum(mass_parts, 0) * tl.where(reports, weight, 0.0)[:, None]
            in_bounds = found[:, None] & (k < NUM_CHANNELS)
            tl.store(stats.masses + place[:, None] * NUM_CHANNELS + k, masses, mask=in_bounds)


@triton.jit
def finish(
    whole, value, sums, stats, is_selected, batch, heads, rows, row_exists, num_heads,
    VALUE_DIM: tl.constexpr, NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_DV: tl.constexpr,
    HAS_STATS: tl.constexpr, STATS_CHANNELS: tl.constexpr, STATS_WIDTH: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """Write output and statistics of M rows whose only split this was."""
    if value is not None:
        row_max, row_sum, masses, output = sums
        finish_output(
            whole, row_max, row_sum, masses, output, is_selected, batch, heads, rows, row_exists,
            VALUE_DIM, NUM_CHANNELS, WIDTH, BLOCK_DV, POLICY,
        )  # fmt: skip
    if HAS_STATS:
        finish_stats(whole, stats, batch, heads, rows, row_exists, num_heads, STATS_CHANNELS, STATS_WIDTH)
