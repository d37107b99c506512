"""Sums of the softmax of chosen query rows, from Q and K alone: what statistics and policies need.

`row_sums` streams the keys once past each block of rows. Per row it keeps what flash attention keeps, the
strongest score m and total = sum_j exp(s_j - m), and what was asked for beside:

    channel masses        sum_j exp(s_j - m) u_k[j]
    spread                sum_j exp(s_j - m) (s_j - m); the entropy is ln(total) - spread / total
    the strongest column

A few rows leave most of a device idle, so their keys are split over several programs. A second kernel adds
the sums of the splits up, takes in the sink logit, and runs the device function of a policy on the masses. K
is read once per row block and head, mostly from L2 since the row blocks of a head run side by side; written
are a few numbers per row, head and split.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def,assignment"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.policies import Policy, coefficients_of
from regaze.kernels.triton.common import LOG2E, softmax_step
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.operands import (
    Scoring,
    chosen_places,
    free_weights,
    key_groups,
    load_block,
    load_rows,
    matrix_arg,
    row_numbers,
    score_tile,
    visited,
    visits,
)
from regaze.kernels.triton.plan import channel_arg, power_of_two
from regaze.kernels.triton.policy import device_function, head_coefficients, numbers_on, triton_part

#: Larger than any column.
NOWHERE = tl.constexpr(0x7FFFFFFF)


class SumsArg(NamedTuple):
    """Sums of each split, [splits, B, Hq, R] and masses [splits, B, Hq, R, K]; None: not kept."""

    top: Any
    total: Any
    spread: Any
    column: Any
    masses: Any


@triton.jit
def _channel_masses(weights, channels, columns, b, G: tl.constexpr, K: tl.constexpr):
    """Masses of the K channels in weights [M, N], a tuple of K tiles [M]."""
    masses = ()
    if G > 0:
        group = key_groups(channels, b, columns)[None, :]
        for k in tl.static_range(G):
            mass = tl.sum(tl.where(group == k, weights, 0.0), 1)
            masses = masses + (mass,)  # noqa: RUF005 (Triton knows no unpacking)
    for c in tl.static_range(K - G):
        mass = tl.sum(weights * free_weights(channels, b, columns, c)[None, :], 1)
        masses = masses + (mass,)  # noqa: RUF005
    return masses


@triton.jit
def _sums_step(
    i,
    state,
    q_tile,
    k,
    numbers,
    exists,
    chosen,
    sums,
    blocks,
    channels,
    call,
    block,
    b,
    h,
    group,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of a row block after one more key block: top, total, spread, column and K masses, each [M]."""
    top, total, spread, column = state[0], state[1], state[2], state[3]
    start = visited(i, blocks, block, b, h) * BLOCK_N
    columns = start + tl.arange(0, BLOCK_N)
    k_tile = tl.trans(load_block(k, b, h // group, start, call.keys, D, BLOCK_D, BLOCK_N, not MASKED))
    scores = score_tile(
        q_tile, k_tile, numbers, exists, chosen, columns, b, h, call, MASKED, CAUSAL, PRECISION
    )
    weights, rescale, new, new_total = softmax_step(scores, top, total)
    if sums.spread is not None:
        shift = tl.where(new == float("-inf"), 0.0, new)
        fall = tl.where(total > 0, top - shift, 0.0)
        below = tl.where(weights > 0, scores - shift[:, None], 0.0)
        spread = rescale * (spread + total * fall) + tl.sum(weights * below, 1)
    if sums.column is not None:
        here = tl.max(scores, 1)
        first = tl.min(tl.where(scores == here[:, None], columns[None, :], NOWHERE), 1)
        better = (here > top) | ((here == top) & (first < column))
        column = tl.where(better, first, column)
    summed = (new, new_total, spread, column)
    masses = _channel_masses(weights, channels, columns, b, G, K)
    for n in tl.static_range(K):
        summed = summed + (state[4 + n] * rescale + masses[n],)  # noqa: RUF005
    return summed


@triton.jit
def sums_kernel(
    sums,
    q,
    k,
    rows,
    blocks,
    channels,
    call,
    group,
    splits,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of the softmax of BLOCK_M rows of one head over one share of the keys that they visit."""
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    block, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    at = block * BLOCK_M + tl.arange(0, BLOCK_M)
    numbers, exists = row_numbers(rows, at)
    chosen = chosen_places(rows, b, at, exists)
    q_tile = load_rows(q, b, h, numbers, exists, D, BLOCK_D)
    whole, every = visits(blocks, block, b, h, numbers, exists, call, CAUSAL, BLOCK_N)
    share = tl.cdiv(every, splits)
    first, last = split * share, tl.minimum((split + 1) * share, every)

    zeros = tl.zeros([BLOCK_M], tl.float32)
    state = (zeros - float("inf"), zeros, zeros, tl.full([BLOCK_M], NOWHERE, tl.int32))
    for _ in tl.static_range(K):
        state = state + (zeros,)  # noqa: RUF005
    for i in range(first, tl.minimum(last, whole)):
        state = _sums_step(
            i, state, q_tile, k, numbers, exists, chosen, sums, blocks, channels, call, block, b, h, group,
            D, BLOCK_D, BLOCK_N, G, K, False, CAUSAL, PRECISION,
        )  # fmt: skip
    for i in range(tl.maximum(first, whole), last):
        state = _sums_step(
            i, state, q_tile, k, numbers, exists, chosen, sums, blocks, channels, call, block, b, h, group,
            D, BLOCK_D, BLOCK_N, G, K, True, CAUSAL, PRECISION,
        )  # fmt: skip

    to = ((split * tl.num_programs(2) + b) * tl.num_programs(1) + h) * rows.length + at
    tl.store(sums.top + to, state[0], mask=exists)
    tl.store(sums.total + to, state[1], mask=exists)
    if sums.spread is not None:
        tl.store(sums.spread + to, state[2], mask=exists)
    if sums.column is not None:
        tl.store(sums.column + to, state[3], mask=exists)
    for n in tl.static_range(K):
        tl.store(sums.masses + to * K + n, state[4 + n], mask=exists)


class MergedArg(NamedTuple):
    """What becomes of the sums, [B, Hq, R] and [B, Hq, R, K]; None: not wanted."""

    shift: Any
    total: Any
    entropy: Any
    top_weight: Any
    top_column: Any
    masses: Any
    coefficients: Any


@triton.jit
def merge_kernel(
    merged,
    sums,
    active,
    sinks,
    numbers,
    count,
    splits,
    BLOCK_M: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    POLICY: tl.constexpr,
):
    """All splits of BLOCK_M rows of one head: their statistics, and coefficients from their masses."""
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = at < count
    step = tl.num_programs(2) * tl.num_programs(1) * count
    to = (b * tl.num_programs(1) + h) * count + at

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    column = tl.full([BLOCK_M], NOWHERE, tl.int32)
    for s in range(splits):
        here = tl.load(sums.top + s * step + to, mask=exists, other=float("-inf"))
        if sums.column is not None:
            first = tl.load(sums.column + s * step + to, mask=exists, other=NOWHERE)
            column = tl.where((here > top) | ((here == top) & (first < column)), first, column)
        top = tl.maximum(top, here)
    shift = top
    if sinks is not None:
        shift = tl.maximum(top, tl.load(sinks + h).to(tl.float32))
    safe = tl.where(shift == float("-inf"), 0.0, shift)

    zeros = tl.zeros([BLOCK_M], tl.float32)
    kept, spread, masses = zeros, zeros, tl.zeros([BLOCK_M, WIDTH], tl.float32)
    n = tl.arange(0, WIDTH)[None, :]
    for s in range(splits):
        here = tl.load(sums.top + s * step + to, mask=exists, other=float("-inf"))
        scale = tl.exp2((here - safe) * LOG2E)
        part = scale * tl.load(sums.total + s * step + to, mask=exists, other=0.0)
        kept += part
        if sums.spread is not None:
            fall = tl.where(part > 0, here - safe, 0.0)
            spread += scale * tl.load(sums.spread + s * step + to, mask=exists, other=0.0) + part * fall
        if K > 0:
            wanted = exists[:, None] & (n < K)
            masses += scale[:, None] * tl.load(
                sums.masses + (s * step + to)[:, None] * K + n, mask=wanted, other=0.0
            )
    total = kept
    if sinks is not None:
        total += tl.exp2((tl.load(sinks + h).to(tl.float32) - safe) * LOG2E)
    least = tl.maximum(total, 1.0)  # it has the 1 of the strongest key or sink, unless there is none
    share = 1.0 / least
    if active is not None:
        live = tl.load(active + b * count + at, mask=exists, other=0) != 0
        share = tl.where(live, share, 0.0)

    tl.store(merged.shift + to, shift, mask=exists)
    tl.store(merged.total + to, total, mask=exists)
    if merged.entropy is not None:
        entropy = (kept * tl.log(least) - spread) * share
        tl.store(merged.entropy + to, tl.maximum(entropy, 0.0), mask=exists)
    if merged.top_weight is not None:
        weight = tl.exp2((top - safe) * LOG2E) * share
        tl.store(merged.top_weight + to, weight, mask=exists)
        tl.store(merged.top_column + to, tl.where(weight > 0, column, 0).to(tl.int64), mask=exists)
    if K > 0:
        masses *= share[:, None]
        wanted = exists[:, None] & (n < K)
        if merged.masses is not None:
            tl.store(merged.masses + to[:, None] * K + n, masses, mask=wanted)
        if merged.coefficients is not None:
            heads = tl.zeros([BLOCK_M, 1], tl.int32) + h
            coefficients = POLICY(masses, heads, exists[:, None], numbers, WIDTH)
            tl.store(merged.coefficients + to[:, None] * K + n, coefficients, mask=wanted)


class RowSums(NamedTuple):
    """The softmax of R rows in few numbers, fp32; a part that was not asked for is empty.

    Attributes:
        shift, total: [B, Hq, R], weights are exp(s - shift) / total. A fully masked row has total 0, or with
            sinks the weight of the sink.
        entropy, top_weight, top_column: [B, Hq, R], 0 where a row is not active.
        masses: [B, Hq, R, K], 0 where a row is not active.
        coefficients: [B, Hq, R, K] that the policy gives these masses.
    """

    shift: Tensor
    total: Tensor
    entropy: Tensor
    top_weight: Tensor
    top_column: Tensor
    masses: Tensor
    coefficients: Tensor

    @property
    def lse(self) -> Tensor:
        """[B, Hq, R] log of the whole denominator; -inf for a fully masked row."""
        return self.shift + self.total.log()


def row_sums(
    scoring: Scoring,
    sinks: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    *,
    scaling: float,
    softcap: float | None,
    causal: bool,
    active: Tensor | None = None,
    entropy: bool = False,
    top1: bool = False,
    policy: Policy | None = None,
) -> RowSums:
    """Sums of the rows of `scoring`; at most 16 channels, with a policy their coefficients too.

    `active` [B, R] bool: rows that report statistics.
    """
    part = triton_part(policy, scoring.q.shape[1])
    inside = None if part is None or part.couples_heads else part
    parts = _row_sums(
        scoring.tensors, scoring.tile, sinks, groups, weights, num_groups, active, scaling, softcap, causal,
        entropy, top1, "" if inside is None else inside.function, () if inside is None else inside.numbers,
    )  # fmt: skip
    sums = RowSums(*parts)
    if policy is None or inside is not None:
        return sums
    if part is None:
        # Kernels count on the strides of a contiguous tensor; a policy may return an expanded one.
        return sums._replace(coefficients=coefficients_of(policy, sums.masses).contiguous())
    given = head_coefficients(sums.masses, None, None, sums.masses.shape, part.function, part.numbers)
    return sums._replace(coefficients=given)


@operator("row_sums")
def _row_sums(
    tensors: list[Tensor | None],
    tile: Sequence[int],
    sinks: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    active: Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
    entropy: bool,
    top1: bool,
    function: str,
    numbers: Sequence[float],
) -> list[Tensor]:
    scoring = Scoring.of(tensors, tile)
    channels = channel_arg(groups, weights)
    some = num_groups if groups is not None else 0
    every = some + (0 if weights is None else weights.shape[0])
    results = RowSums(*_empty(scoring, every, entropy, top1, function))
    if not results.shift.numel():
        return list(results)
    splits, (batch, heads, rows) = scoring.splits(), scoring.sums_shape
    constants = scoring.constants(causal)
    block = constants["BLOCK_M"]

    def partial(wanted: bool, *last: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return results.shift.new_empty(splits, batch, heads, rows, *last, dtype=dtype) if wanted else None

    sums = SumsArg(
        top=partial(True),
        total=partial(True),
        spread=partial(entropy),
        column=partial(top1, dtype=torch.int32),
        masses=partial(every > 0, every),
    )
    blocks = triton.cdiv(rows, block)
    sums_kernel[(blocks * splits, heads, batch)](
        sums,
        matrix_arg(scoring.q),
        matrix_arg(scoring.k),
        scoring.rows_arg(),
        scoring.blocks_arg(),
        channels,
        scoring.call_arg(scaling, softcap),
        scoring.group,
        splits,
        G=some,
        K=every,
        **constants,
    )
    wanted = [part if part.numel() else None for part in results]
    merge_kernel[(blocks, heads, batch)](
        MergedArg(*wanted),
        sums,
        active,
        sinks,
        numbers_on(numbers, scoring.q.device) if function else None,
        rows,
        splits,
        BLOCK_M=block,
        K=every,
        WIDTH=power_of_two(max(1, every)),
        POLICY=device_function(function) if function else None,
        num_warps=4,
        **FUSED,
    )
    return list(results)


@_row_sums.register_fake
def _(
    tensors: list[Tensor | None],
    tile: Sequence[int],
    sinks: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    active: Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
    entropy: bool,
    top1: bool,
    function: str,
    numbers: Sequence[float],
) -> list[Tensor]:
    every = (num_groups if groups is not None else 0) + (0 if weights is None else weights.shape[0])
    return _empty(Scoring(*tensors), every, entropy, top1, function)  # type: ignore[arg-type]


def _empty(scoring: Scoring, channels: int, entropy: bool, top1: bool, function: str) -> list[Tensor]:
    """Room for `RowSums`."""
    shape = scoring.sums_shape

    def room(wanted: bool, *last: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return scoring.q.new_empty((*shape, *last) if wanted else 0, dtype=dtype)

    return [
        room(True),
        room(True),
        room(entropy),
        room(top1),
        room(top1, dtype=torch.int64),
        room(channels > 0, channels),
        room(bool(function), channels),
    ]
