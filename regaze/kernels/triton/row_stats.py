"""Softmax statistics of chosen query rows, from Q and K alone, for statistics requests and policies.

`row_stats` streams the keys once past each block of rows. Per row it carries the running maximum m of the
scores and sum_j exp(s_j - m), as flash attention does, and further sums on request:

    channel masses        sum_j exp(s_j - m) u_k[j]
    spread                sum_j exp(s_j - m) (s_j - m); the entropy is ln(sum) - spread / sum
    the strongest column

A few rows leave most of a device idle, so their keys are split over several programs. A second kernel merges
the splits, takes in the sink logit, and runs the device function of a policy on the masses. K is read once
per row block and head, mostly from L2 since the row blocks of a head run side by side; written are a few
numbers per row, head and split.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def,assignment"

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.channels import Channels
from regaze.kernels.policies import Policy, coefficients_of
from regaze.kernels.triton.arguments import channel_arg, matrix_arg, num_channels, sink_arg
from regaze.kernels.triton.common import softmax_step, varied
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.policy import device_function, head_coefficients, numbers_on, triton_part
from regaze.kernels.triton.row_list import (
    RowList,
    block_counts,
    edited_scores,
    load_groups,
    load_key_block,
    load_row_numbers,
    load_rows,
    load_selected,
    load_weights,
    visited_block,
)
from regaze.kernels.triton.row_stats_merge import (
    NO_COLUMN,
    PartialStatsArg,
    RowStatsArg,
    row_stats_merge_kernel,
)
from regaze.kernels.triton.tiling import power_of_two


@triton.jit
def _channel_masses(weights, channels, columns, batch, NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr):
    """Masses of the channels in weights [M, N], a tuple of NUM_CHANNELS tiles [M]."""
    masses = ()
    if NUM_GROUPS > 0:
        group = load_groups(channels, batch, columns)[None, :]
        for k in tl.static_range(NUM_GROUPS):
            mass = tl.sum(tl.where(group == k, weights, 0.0), 1)
            masses = masses + (mass,)  # noqa: RUF005 (Triton knows no unpacking)
    for c in tl.static_range(NUM_CHANNELS - NUM_GROUPS):
        mass = tl.sum(weights * load_weights(channels, batch, columns, c)[None, :], 1)
        masses = masses + (mass,)  # noqa: RUF005
    return masses


@triton.jit
def _stats_step(
    i, state, query_tile, key, rows, row_exists, selected, partial, block_map, channels, stats_channels,
    score, row_block, batch, head, gqa_ratio,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr,
    STATS_GROUPS: tl.constexpr, STATS_CHANNELS: tl.constexpr,
    IS_MASKED: tl.constexpr, IS_CAUSAL: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of a row block after one more key block: maximum, sum, spread, column and masses, each [M]."""
    running_max, running_sum, spread, top_column = state[0], state[1], state[2], state[3]
    start = visited_block(i, block_map, row_block, batch, head) * BLOCK_N
    columns = start + tl.arange(0, BLOCK_N)
    key_tile = load_key_block(
        key,
        batch,
        head // gqa_ratio,
        start,
        varied(score.num_keys),
        HEAD_DIM,
        BLOCK_D,
        BLOCK_N,
        not IS_MASKED,
    )
    scores = edited_scores(
        query_tile, tl.trans(key_tile), rows, row_exists, selected, columns, batch, head, score,
        IS_MASKED, IS_CAUSAL, INPUT_PRECISION,
    )  # fmt: skip
    weights, rescale, new_max, new_sum = softmax_step(scores, running_max, running_sum)
    if partial.spread is not None:
        # Under a new maximum every earlier term of the spread shifts by (old - new).
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        fall = tl.where(running_sum > 0, running_max - shift, 0.0)
        below = tl.where(weights > 0, scores - shift[:, None], 0.0)
        spread = rescale * (spread + running_sum * fall) + tl.sum(weights * below, 1)
    if partial.top_column is not None:
        # Blocks are not visited in the order of their columns: of equal scores the first column wins.
        block_max = tl.max(scores, 1)
        first = tl.min(tl.where(scores == block_max[:, None], columns[None, :], NO_COLUMN), 1)
        is_better = (block_max > running_max) | ((block_max == running_max) & (first < top_column))
        top_column = tl.where(is_better, first, top_column)
    new_state = (new_max, new_sum, spread, top_column)
    masses = _channel_masses(weights, channels, columns, batch, NUM_GROUPS, NUM_CHANNELS)
    masses = masses + _channel_masses(weights, stats_channels, columns, batch, STATS_GROUPS, STATS_CHANNELS)
    for k in tl.static_range(NUM_CHANNELS + STATS_CHANNELS):
        new_state = new_state + (state[4 + k] * rescale + masses[k],)  # noqa: RUF005
    return new_state


@triton.jit(do_not_specialize=["num_splits"])
def row_stats_kernel(
    partial, query, key, row_list, block_map, channels, stats_channels, score, gqa_ratio, num_splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr,
    STATS_GROUPS: tl.constexpr, STATS_CHANNELS: tl.constexpr,
    IS_CAUSAL: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of the softmax of BLOCK_M rows of one head over one share of the keys that they visit."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row_block, split = tl.program_id(0) // num_splits, tl.program_id(0) % num_splits
    offsets = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, row_exists = load_row_numbers(row_list, offsets)
    selected = load_selected(row_list, batch, offsets, row_exists)
    query_tile = load_rows(query, batch, head, rows, row_exists, HEAD_DIM, BLOCK_D)
    num_full, num_visited = block_counts(
        block_map, row_block, batch, head, rows, row_exists, score, IS_CAUSAL, BLOCK_N
    )
    share = tl.cdiv(num_visited, num_splits)
    first, last = split * share, tl.minimum((split + 1) * share, num_visited)

    zeros = tl.zeros([BLOCK_M], tl.float32)
    state = (zeros - float("inf"), zeros, zeros, tl.full([BLOCK_M], NO_COLUMN, tl.int32))
    for _ in tl.static_range(NUM_CHANNELS + STATS_CHANNELS):
        state = state + (zeros,)  # noqa: RUF005
    for i in range(first, tl.minimum(last, num_full)):  # blocks that all rows see in full: no mask is read
        state = _stats_step(
            i, state, query_tile, key, rows, row_exists, selected, partial, block_map, channels,
            stats_channels, score, row_block, batch, head, gqa_ratio, HEAD_DIM, BLOCK_D, BLOCK_N,
            NUM_GROUPS, NUM_CHANNELS, STATS_GROUPS, STATS_CHANNELS,
            False, IS_CAUSAL, INPUT_PRECISION,
        )  # fmt: skip
    for i in range(tl.maximum(first, num_full), last):
        state = _stats_step(
            i, state, query_tile, key, rows, row_exists, selected, partial, block_map, channels,
            stats_channels, score, row_block, batch, head, gqa_ratio, HEAD_DIM, BLOCK_D, BLOCK_N,
            NUM_GROUPS, NUM_CHANNELS, STATS_GROUPS, STATS_CHANNELS,
            True, IS_CAUSAL, INPUT_PRECISION,
        )  # fmt: skip

    place = ((split * tl.num_programs(2) + batch) * tl.num_programs(1) + head) * varied(
        row_list.length
    ) + offsets
    tl.store(partial.running_max + place, state[0], mask=row_exists)
    tl.store(partial.running_sum + place, state[1], mask=row_exists)
    if partial.spread is not None:
        tl.store(partial.spread + place, state[2], mask=row_exists)
    if partial.top_column is not None:
        tl.store(partial.top_column + place, state[3], mask=row_exists)
    for k in tl.static_range(NUM_CHANNELS + STATS_CHANNELS):
        mass_ptrs = partial.masses + place * (NUM_CHANNELS + STATS_CHANNELS) + k
        tl.store(mass_ptrs, state[4 + k], mask=row_exists)


# --- the host's side


class RowStats(NamedTuple):
    """The softmax of R rows in few numbers, fp32; a part that was not requested is empty.

    Attributes:
        shift, total: [B, Hq, R], weights are exp(s - shift) / total. A fully masked row has total 0, or with
            sinks the weight of the sink.
        entropy, top_weight, top_column: [B, Hq, R], 0 where a row is not active.
        masses: [B, Hq, R, K] of the policy's channels.
        coefficients: [B, Hq, R, K] that the policy gives these masses.
        stats_masses: [B, Hq, R, K'] of channels on record, 0 where a row is not active.
    """

    shift: Tensor
    total: Tensor
    entropy: Tensor
    top_weight: Tensor
    top_column: Tensor
    masses: Tensor
    coefficients: Tensor
    stats_masses: Tensor

    @property
    def lse(self) -> Tensor:
        """[B, Hq, R] log of the whole denominator; -inf for a fully masked row."""
        return self.shift + self.total.log()


class MassChannels(NamedTuple):
    """Channels as operators take them; by default none."""

    groups: Tensor | None = None
    weights: Tensor | None = None
    num_groups: int = 0

    @classmethod
    def of(cls, channels: Channels | None) -> MassChannels:
        if channels is None:
            return cls()
        return cls(channels.groups, channels.weights, channels.num_groups)

    @property
    def num_channels(self) -> int:
        return num_channels(*self)


def row_stats(
    rows: RowList,
    sinks: tuple[Tensor | None, Tensor | None],
    policy: Policy | None,
    channels: MassChannels,
    stats_channels: MassChannels,
    *,
    scaling: float,
    softcap: float | None,
    causal: bool,
    active: Tensor | None = None,
    entropy: bool = False,
    top1: bool = False,
) -> RowStats:
    """Statistics of `rows`; at most `MAX_CHANNELS` channels, with a policy the coefficients of its own.

    `sinks` are those of the model and of the edit.

    `active` [B, R] bool: rows that report statistics.
    """
    part = triton_part(policy, rows.query.shape[1])
    inside = None if part is None or part.couples_heads else part
    function, numbers = ("", ()) if inside is None else (inside.function, inside.numbers)
    results = _row_stats(
        rows.tensors, rows.tiling, sinks[0], sinks[1], *channels, *stats_channels, active, scaling, softcap,
        causal, entropy, top1, function, numbers,
    )  # fmt: skip
    stats = RowStats(*results)
    if policy is None or inside is not None or not channels.num_channels:
        return stats
    if part is None:
        # Kernels count on the strides of a contiguous tensor; a policy may return an expanded one.
        return stats._replace(coefficients=coefficients_of(policy, stats.masses).contiguous())
    given = head_coefficients(stats.masses, None, None, None, stats.masses.shape, part.function, part.numbers)
    return stats._replace(coefficients=given)


@operator("row_stats")
def _row_stats(
    tensors: list[Tensor | None],
    tiling: Sequence[int],
    sinks: Tensor | None,
    sink: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    stats_groups: Tensor | None,
    stats_weights: Tensor | None,
    stats_num_groups: int,
    active: Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
    entropy: bool,
    top1: bool,
    function: str,
    numbers: Sequence[float],
) -> list[Tensor]:
    rows = RowList.of(tensors, tiling)
    channels = MassChannels(groups, weights, num_groups)
    stats_channels = MassChannels(stats_groups, stats_weights, stats_num_groups)
    results = _results(rows, channels, stats_channels, entropy, top1, function)
    if not results[0].numel():
        return results
    splits, constants = rows.num_splits, rows.constants(causal)
    batch, heads, count = rows.shape
    own, others = channels.num_channels, stats_channels.num_channels
    partial = _partial_stats(rows, splits, own + others, entropy, top1)
    row_blocks = triton.cdiv(count, constants["BLOCK_M"])
    row_stats_kernel[(row_blocks * splits, heads, batch)](
        partial,
        matrix_arg(rows.query),
        matrix_arg(rows.key),
        rows.rows_arg(),
        rows.blocks_arg(),
        channel_arg(groups, weights),
        channel_arg(stats_groups, stats_weights),
        rows.score_arg(scaling, softcap),
        rows.gqa_ratio,
        splits,
        NUM_GROUPS=num_groups if groups is not None else 0,
        NUM_CHANNELS=own,
        STATS_GROUPS=stats_num_groups if stats_groups is not None else 0,
        STATS_CHANNELS=others,
        **constants,
    )
    row_stats_merge_kernel[(row_blocks, heads, batch)](
        RowStatsArg(*(result if result.numel() else None for result in results)),
        partial,
        active,
        sink_arg(sinks, sink),
        numbers_on(numbers, rows.query.device) if function else None,
        rows.rows_arg()._replace(selected_ptr=None),
        splits,
        BLOCK_M=constants["BLOCK_M"],
        NUM_CHANNELS=own,
        WIDTH=power_of_two(max(1, own)),
        STATS_CHANNELS=others,
        STATS_WIDTH=power_of_two(max(1, others)),
        POLICY=device_function(function) if function else None,
        num_warps=4,
        **FUSED,
    )
    return results


@_row_stats.register_fake
def _(
    tensors: list[Tensor | None],
    tiling: Sequence[int],
    sinks: Tensor | None,
    sink: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    stats_groups: Tensor | None,
    stats_weights: Tensor | None,
    stats_num_groups: int,
    active: Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
    entropy: bool,
    top1: bool,
    function: str,
    numbers: Sequence[float],
) -> list[Tensor]:
    channels = MassChannels(groups, weights, num_groups)
    stats_channels = MassChannels(stats_groups, stats_weights, stats_num_groups)
    return _results(RowList.of(tensors, tiling), channels, stats_channels, entropy, top1, function)


def _partial_stats(rows: RowList, splits: int, channels: int, entropy: bool, top1: bool) -> PartialStatsArg:
    """Room for the sums of each split."""

    def room(requested: bool, *last: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return rows.query.new_empty(splits, *rows.shape, *last, dtype=dtype) if requested else None

    return PartialStatsArg(
        running_max=room(True),
        running_sum=room(True),
        spread=room(entropy),
        top_column=room(top1, dtype=torch.int32),
        masses=room(channels > 0, channels),
    )


def _results(
    rows: RowList,
    channels: MassChannels,
    stats_channels: MassChannels,
    entropy: bool,
    top1: bool,
    function: str,
) -> list[Tensor]:
    """Room for `RowStats`."""

    def room(requested: bool, *last: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return rows.query.new_empty((*rows.shape, *last) if requested else 0, dtype=dtype)

    own, others = channels.num_channels, stats_channels.num_channels
    return [
        room(True),
        room(True),
        room(entropy),
        room(top1),
        room(top1, dtype=torch.int64),
        room(own > 0, own),
        room(bool(function), own),
        room(others > 0, others),
    ]
