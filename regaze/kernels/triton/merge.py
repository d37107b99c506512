"""The second half of decoding: splits merged, the policy run, output and statistics written.

One program merges the splits of one row for a block of value columns. It brings the sums of every split to a
common maximum, adds them up in the order of the splits, runs the device function of the policy on the masses
(each program for itself: they are a few numbers), and writes the weighted outputs. Further programs of the
same launch write the statistics of the rows to report on. Coefficients of a policy that couples heads, or
that runs in torch, are given to this kernel (policy.py).
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.reference import row_sinks
from regaze.kernels.spec import StatsRequest
from regaze.kernels.triton.arguments import ColumnArg, MatrixArg, column_arg, per_row_arg, sink_arg
from regaze.kernels.triton.common import LN2, LOG2E, TINY, load_sinks, per_row_place, round_to, varied
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.policy import device_function, numbers_on
from regaze.kernels.triton.splits import STATS_HEADER, SUMS_HEADER, merge_splits
from regaze.kernels.triton.tiling import power_of_two

#: Value columns of a program, and splits that it reads at a time.
BLOCK_DV = 64
SPLIT_STEP = 8


class PolicyArg(NamedTuple):
    """Numbers of a device function or coefficients [B, Hq, Lq, K]; rows the edit selects, [B or 1, 1, Lq]."""

    numbers_ptr: Any
    coefficients_ptr: Any
    selected: ColumnArg


class StatsArg(NamedTuple):
    """Where statistics [B, Hq, R] and [B, Hq, R, K] go, None for those that are not requested.

    `shift` and `total` make weights of scores: exp(s - shift) / total.
    """

    masses: Any = None
    entropy: Any = None
    top_weight: Any = None
    top_column: Any = None
    lse: Any = None
    shift: Any = None
    total: Any = None


@triton.jit
def row_coefficients(
    row_offset, batch, head, row, sums_ptr, split_offsets, split_exists, factors, policy,
    NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """Coefficients [1, WIDTH] of one row; (1, 0, ...) for a row that the edit does not select."""
    k = tl.arange(0, WIDTH)[None, :]
    if policy.coefficients_ptr is not None:
        ptrs = policy.coefficients_ptr + row_offset * NUM_CHANNELS + k
        coefficients = tl.load(ptrs, mask=k < NUM_CHANNELS, other=0.0)
    else:
        ptrs = sums_ptr + split_offsets[:, :, None] + SUMS_HEADER + k[:, None, :]
        in_bounds = split_exists[:, :, None] & (k < NUM_CHANNELS)[:, None, :]
        masses = tl.sum(factors[:, :, None] * tl.load(ptrs, mask=in_bounds, other=0.0), 1)
        heads = head + tl.zeros([1, 1], tl.int64)
        coefficients = POLICY(masses, heads, heads >= 0, policy.numbers_ptr, WIDTH)
    if policy.selected.ptr is not None:
        selected_ptr = policy.selected.ptr + row
        if policy.selected.stride_b is not None:
            selected_ptr += batch * varied(policy.selected.stride_b)
        # decode_split put all weights of a row that is not selected into channel 0.
        coefficients = tl.where(tl.load(selected_ptr) != 0, coefficients, (k == 0).to(tl.float32))
    return coefficients


@triton.jit
def merge_output(
    row_offset, batch, head, row, out, sums_ptr, outputs_ptr, sinks, policy, head_gain, num_splits,
    NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_DV: tl.constexpr, SPLIT_STEP: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """A block of columns of one row's output: splits merged, channels weighted, head scaled."""
    SIZE: tl.constexpr = SUMS_HEADER + NUM_CHANNELS
    NUM_OUTPUTS: tl.constexpr = NUM_CHANNELS if NUM_CHANNELS > 0 else 1
    one_row = row_offset + tl.zeros([1], tl.int64)
    sink = None
    if sinks is not None:
        sink = load_sinks(sinks, batch, head, row)
    split_offsets, split_exists, factors, _, shift, denominator, _ = merge_splits(
        sums_ptr, one_row, one_row >= 0, sink, num_splits, SIZE, BLOCK_S
    )
    inverse = tl.where(denominator > 0, 1.0 / denominator, 0.0)
    coefficients = tl.full([1, WIDTH], 1.0, tl.float32)
    if NUM_CHANNELS > 0:
        coefficients = row_coefficients(
            row_offset, batch, head, row, sums_ptr, split_offsets, split_exists, factors, policy,
            NUM_CHANNELS, WIDTH, POLICY,
        )  # fmt: skip
    k = tl.arange(0, WIDTH)[None, :, None]
    dv = tl.program_id(1) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    columns = dv[None, None, :]
    result = tl.zeros([BLOCK_DV], tl.float32)
    for start in range(0, num_splits, SPLIT_STEP):  # outputs of all splits at once would fill the registers
        split = start + tl.arange(0, SPLIT_STEP)
        record = row_offset * num_splits + split
        split_max = tl.load(sums_ptr + record * SIZE, mask=split < num_splits, other=float("-inf"))
        factor = tl.exp2((split_max - shift) * LOG2E) * inverse
        ptrs = outputs_ptr + (record[:, None, None] * NUM_OUTPUTS + k) * VALUE_DIM + columns
        in_bounds = (split < num_splits)[:, None, None] & (k < NUM_OUTPUTS) & (columns < VALUE_DIM)
        part = tl.load(ptrs, mask=in_bounds, other=0.0)
        result += tl.sum(tl.sum(part * factor[:, None, None] * coefficients[:, :, None], 1), 0)
    if head_gain is not None:
        result *= tl.load(per_row_place(head_gain, batch, head, row)).to(tl.float32)
    out_ptrs = out.ptr + batch * out.stride_b + head * out.stride_h + row * out.stride_l + dv
    tl.store(out_ptrs, round_to(result, out.ptr.dtype.element_ty), mask=dv < VALUE_DIM)


@triton.jit
def merge_masses_of_row(
    row_offset, stats_ptr, shift, inverse, num_splits,
    NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SPLIT_STEP: tl.constexpr,
):  # fmt: skip
    """Masses [WIDTH] of the channels in the statistics of one row."""
    SIZE: tl.constexpr = STATS_HEADER + NUM_CHANNELS
    k = tl.arange(0, WIDTH)
    masses = tl.zeros([WIDTH], tl.float32)
    for start in range(0, num_splits, SPLIT_STEP):
        split = start + tl.arange(0, SPLIT_STEP)
        ptrs = stats_ptr + (row_offset * num_splits + split) * SIZE
        split_max = tl.load(ptrs, mask=split < num_splits, other=float("-inf"))
        in_bounds = (split < num_splits)[:, None] & (k < NUM_CHANNELS)[None, :]
        part = tl.load(ptrs[:, None] + STATS_HEADER + k[None, :], mask=in_bounds, other=0.0)
        masses += tl.sum(part * (tl.exp2((split_max - shift) * LOG2E) * inverse)[:, None], 0)
    return masses


@triton.jit
def merge_stats(
    row_offset, sink, place, active, stats_ptr, stats, num_splits,
    NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_S: tl.constexpr, SPLIT_STEP: tl.constexpr,
):  # fmt: skip
    """Statistics of row `row_offset`, stored at `place`; a row that is not `active` reports 0.

    `sink` is the row's sink logit, or None.
    """
    SIZE: tl.constexpr = STATS_HEADER + NUM_CHANNELS
    one_row = row_offset + tl.zeros([1], tl.int64)
    place = place + tl.zeros([1], tl.int64)
    split_offsets, split_exists, factors, row_max, shift, denominator, keys_sum = merge_splits(
        stats_ptr, one_row, one_row >= 0, sink, num_splits, SIZE, BLOCK_S
    )
    inverse = tl.where(denominator > 0, 1.0 / denominator, 0.0)
    log_denominator = tl.log2(tl.maximum(denominator, TINY)) * LN2
    reports = active & (keys_sum > 0)
    split_max = tl.load(stats_ptr + split_offsets, mask=split_exists, other=float("-inf"))
    if stats.shift is not None:
        tl.store(stats.shift + place, shift)
        tl.store(stats.total + place, denominator)
    if stats.lse is not None:
        lse = tl.where(denominator > 0, shift + log_denominator, float("-inf"))
        tl.store(stats.lse + place, tl.where(active, lse, 0.0))
    if stats.entropy is not None:  # sum_j a_j (lse - s_j); a split knows the sum of s_j - its maximum
        split_sum = tl.load(stats_ptr + split_offsets + 1, mask=split_exists, other=0.0)
        below = tl.load(stats_ptr + split_offsets + 2, mask=split_exists, other=0.0)
        below += tl.where(split_sum > 0, (split_max - shift[:, None]) * split_sum, 0.0)
        entropy = log_denominator * keys_sum * inverse - tl.sum(factors * below, 1)
        tl.store(stats.entropy + place, tl.where(reports, entropy, 0.0))
    if stats.top_weight is not None:
        top_split = tl.argmax(split_max, 1, tie_break_left=True)
        column = tl.load(stats_ptr + (row_offset * num_splits + top_split) * SIZE + 3).to(tl.int64)
        weight = tl.exp2((row_max - shift) * LOG2E) * inverse
        tl.store(stats.top_weight + place, tl.where(reports, weight, 0.0))
        tl.store(stats.top_column + place, tl.where(reports, column, 0))
    if NUM_CHANNELS > 0:
        k = tl.arange(0, WIDTH)
        masses = merge_masses_of_row(
            row_offset, stats_ptr, shift, inverse, num_splits, NUM_CHANNELS, WIDTH, SPLIT_STEP
        )
        masses = tl.where(reports, masses, 0.0)
        tl.store(stats.masses + place * NUM_CHANNELS + k, masses, mask=k < NUM_CHANNELS)


@triton.jit(do_not_specialize=["num_output_rows", "num_heads", "num_queries", "num_stats_rows", "num_splits"])
def decode_merge_kernel(
    out, stats, sums_ptr, outputs_ptr, stats_ptr, policy, sinks, stats_sinks, head_gain, index_ptr,
    active_ptr, num_output_rows, num_heads, num_queries, num_stats_rows, num_splits,
    NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr, VALUE_DIM: tl.constexpr,
    STATS_CHANNELS: tl.constexpr, STATS_WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_DV: tl.constexpr, SPLIT_STEP: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """Outputs of B Hq Lq rows, a block of columns per program; then statistics of B Hq R rows.

    `stats_sinks` are those of the softmax that the statistics are about.
    """
    program = tl.program_id(0).to(tl.int64)
    if program < num_output_rows:
        if out is not None:
            row, pair = program % num_queries, program // num_queries
            batch, head = pair // num_heads, pair % num_heads
            merge_output(
                program, batch, head, row, out, sums_ptr, outputs_ptr, sinks, policy, head_gain,
                num_splits, NUM_CHANNELS, WIDTH, VALUE_DIM, BLOCK_S, BLOCK_DV, SPLIT_STEP, POLICY,
            )  # fmt: skip
    elif tl.program_id(1) == 0:  # noqa: SIM102 (Triton decides what is None one `if` at a time)
        if stats_ptr is not None:
            place = program - num_output_rows
            row, pair = place % num_stats_rows, place // num_stats_rows
            active = place >= 0
            if active_ptr is not None:
                active = tl.load(active_ptr + (pair // num_heads) * num_stats_rows + row) != 0
            if index_ptr is not None:
                row = tl.load(index_ptr + row)
            sink = None
            if stats_sinks is not None:
                sink = load_sinks(stats_sinks, pair // num_heads, pair % num_heads, row)
            merge_stats(
                pair * num_queries + row, sink, place, active, stats_ptr, stats,
                num_splits, STATS_CHANNELS, STATS_WIDTH, BLOCK_S, SPLIT_STEP,
            )  # fmt: skip


# --- the host's side


@operator("decode_merge")
def decode_merge(
    query: Tensor,
    partial_sums: Tensor | None,
    partial_outputs: Tensor | None,
    partial_stats: Tensor | None,
    sinks: Tensor | None,
    sink: Tensor | None,
    sink_in_stats: bool,
    selected: Tensor | None,
    coefficients: Tensor | None,
    head_gain: Tensor | None,
    index: Tensor | None,
    active: Tensor | None,
    function: str,
    numbers: Sequence[float],
    entropy: bool,
    top1: bool,
    lse: bool,
    softmax: bool,
) -> list[Tensor]:
    """The output [B, Hq, Lq, Dv] from the partial sums of `decode_split`, then statistics: see `stats_names`.

    `query` gives shape and type. The coefficients of the policy's channels are given, or `function` names its
    device function and `numbers` are what that reads. `sinks` [Hq] are the model's, `sink` those of the edit,
    which take part in the statistics where `sink_in_stats`. `selected` [B or 1, Lq] are the rows that the
    edit changes; `index` [R] (None: all) and `active` [B, R] are the rows to report on.
    """
    merge = MergeShape.of_partials(query, partial_sums, partial_outputs, partial_stats, index)
    channels = None if partial_stats is None else merge.stats_channels
    names = stats_names(channels, entropy, top1, lse, softmax)
    results = room(query, merge, names)
    if merge.output_rows + merge.records == 0:
        return results
    out = None if partial_outputs is None else results[0]
    policy = policy_arg(function, numbers, coefficients, selected, query.device)
    decode_merge_kernel[merge.grid](
        None if out is None else MatrixArg(out, *out.stride()[:3]),
        StatsArg(**dict(zip(names, results[len(results) - len(names) :], strict=True))),
        partial_sums,
        partial_outputs,
        partial_stats,
        policy,
        *merge_arguments(merge, sinks, sink, sink_in_stats, head_gain, index, active),
        **merge.constants(function),
    )
    return results


class MergeShape(NamedTuple):
    """Sizes of one merge.

    Attributes:
        batch, heads, queries: of the query.
        splits: to merge.
        channels, value_dim: of the outputs; no value dimension where there are none.
        stats_channels, stats_rows: channels of the statistics, and rows R to report on; no rows where there
            are no statistics.
    """

    batch: int
    heads: int
    queries: int
    splits: int
    channels: int
    value_dim: int
    stats_channels: int
    stats_rows: int

    @classmethod
    def of_partials(
        cls,
        query: Tensor,
        sums: Tensor | None,
        outputs: Tensor | None,
        stats: Tensor | None,
        index: Tensor | None,
    ) -> MergeShape:
        """That of the results of `decode_split`."""
        batch, heads, queries, _ = query.shape
        splits = (stats if sums is None else sums).shape[1]  # type: ignore[union-attr]
        rows = queries if index is None else index.shape[0]
        return cls(
            *(batch, heads, queries, splits),
            channels=0 if sums is None else sums.shape[2] - SUMS_HEADER.value,
            value_dim=0 if outputs is None else outputs.shape[3],
            stats_channels=0 if stats is None else stats.shape[2] - STATS_HEADER.value,
            stats_rows=0 if stats is None else rows,
        )

    @property
    def output_rows(self) -> int:
        return self.batch * self.heads * self.queries if self.value_dim else 0

    @property
    def records(self) -> int:
        return self.batch * self.heads * self.stats_rows

    @property
    def grid(self) -> tuple[int, int]:
        return self.output_rows + self.records, -(-max(1, self.value_dim) // self.block_dv)

    @property
    def block_dv(self) -> int:
        return min(BLOCK_DV, power_of_two(max(1, self.value_dim)))

    def constants(self, function: str) -> dict[str, Any]:
        """Compile-time constants of `decode_merge_kernel`."""
        return {
            "NUM_CHANNELS": self.channels,
            "WIDTH": power_of_two(max(1, self.channels)),
            "VALUE_DIM": max(1, self.value_dim),
            "STATS_CHANNELS": self.stats_channels,
            "STATS_WIDTH": power_of_two(max(1, self.stats_channels)),
            "BLOCK_S": power_of_two(self.splits),
            "BLOCK_DV": self.block_dv,
            "SPLIT_STEP": SPLIT_STEP,
            "POLICY": device_function(function) if function else None,
            "num_warps": 4,
            **FUSED,
        }


def policy_arg(
    function: str,
    numbers: Sequence[float],
    coefficients: Tensor | None,
    selected: Tensor | None,
    device: torch.device,
) -> PolicyArg:
    """The policy as `decode_merge_kernel` takes it."""
    return PolicyArg(
        numbers_on(numbers, device) if function else None,
        coefficients,
        column_arg(None if selected is None else selected[:, None]),
    )


def merge_arguments(
    merge: MergeShape,
    sinks: Tensor | None,
    sink: Tensor | None,
    sink_in_stats: bool,
    head_gain: Tensor | None,
    index: Tensor | None,
    active: Tensor | None,
) -> tuple[Any, ...]:
    """The arguments of `decode_merge_kernel` after `policy`."""
    sizes = merge.output_rows, merge.heads, merge.queries, max(1, merge.stats_rows), merge.splits
    stats_sinks = sink_arg(sinks, sink if sink_in_stats else None)
    return (sink_arg(sinks, sink), stats_sinks, per_row_arg(head_gain), index, active, *sizes)


@decode_merge.register_fake
def _(
    query: Tensor,
    partial_sums: Tensor | None,
    partial_outputs: Tensor | None,
    partial_stats: Tensor | None,
    sinks: Tensor | None,
    sink: Tensor | None,
    sink_in_stats: bool,
    selected: Tensor | None,
    coefficients: Tensor | None,
    head_gain: Tensor | None,
    index: Tensor | None,
    active: Tensor | None,
    function: str,
    numbers: Sequence[float],
    entropy: bool,
    top1: bool,
    lse: bool,
    softmax: bool,
) -> list[Tensor]:
    merge = MergeShape.of_partials(query, partial_sums, partial_outputs, partial_stats, index)
    channels = None if partial_stats is None else merge.stats_channels
    return room(query, merge, stats_names(channels, entropy, top1, lse, softmax))


def stats_names(channels: int | None, entropy: bool, top1: bool, lse: bool, softmax: bool) -> list[str]:
    """Which statistics `decode_merge` returns, in the order of `StatsArg`; without `channels` none."""
    if channels is None:
        return []
    requested = (channels > 0, entropy, top1, top1, lse, softmax, softmax)
    return [name for name, is_requested in zip(StatsArg._fields, requested, strict=True) if is_requested]


def requested_parts(request: StatsRequest | None) -> tuple[bool, bool, bool, bool]:
    """Of a request: entropy, strongest column, log-sum-exp, and what makes weights of scores."""
    if request is None:
        return False, False, False, False
    needs_softmax = request.full_rows or request.columns is not None
    return request.entropy, request.top1, request.lse, needs_softmax


def room(query: Tensor, merge: MergeShape, names: Sequence[str]) -> list[Tensor]:
    """Room for the output, in the memory order [B, Lq, Hq, Dv] of the next layer, and for the statistics."""
    batch, heads, queries, dim = merge.batch, merge.heads, merge.queries, merge.value_dim
    results = []
    if dim:
        strides = queries * heads * dim, dim, heads * dim, 1
        results.append(query.new_empty_strided((batch, heads, queries, dim), strides))
    rows = (batch, heads, merge.stats_rows)
    for name in names:
        shape: tuple[int, ...] = (*rows, merge.stats_channels) if name == "masses" else rows
        dtype = torch.int64 if name == "top_column" else torch.float32
        results.append(query.new_empty(shape, dtype=dtype))
    return results


def merge_masses(
    partial_sums: Tensor, sinks: Tensor | None, sink: Tensor | None, shape: Sequence[int]
) -> Tensor:
    """Masses [B, Hq, Lq, K] of partial sums [B Hq Lq, S, 2 + K], in torch for policies that run there."""
    split_max, split_sum = partial_sums[..., 0], partial_sums[..., 1]
    masses = partial_sums[..., SUMS_HEADER.value :]
    shift = split_max.amax(1, keepdim=True)
    logits = row_sinks(sinks, sink)
    if logits is not None:
        logits = logits.float().expand(*shape).reshape(-1, 1)
        shift = torch.maximum(shift, logits)
    shift = shift.masked_fill(shift == -torch.inf, 0.0)
    factors = torch.exp(split_max - shift)
    denominator = (factors * split_sum).sum(1)
    if logits is not None:
        denominator = denominator + torch.exp(logits - shift)[:, 0]
    tiny = torch.finfo(torch.float32).tiny
    merged = (factors[..., None] * masses).sum(1) / denominator.clamp_min(tiny)[:, None]
    return merged.view(*shape, -1)
