"""Attention rows where they are wanted in full: slices of chosen rows, and sums of columns over chosen rows.

With the sums of a row known (sums.py), any of its weights is exp(s - shift) / total. `row_slices` computes
chosen rows x columns in one tile per program and reads only the keys of these columns. `column_sums` keeps a
block of keys and streams the rows past it, so that sums [B, Hq, Lk] over any number of rows take no memory
but their own.

What depends on the weights *after* an edit (the entropy of a redistributed row) is measured from slices of a
bounded number of rows at a time.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.triton.common import LOG2E
from regaze.kernels.triton.custom_op import operator
from regaze.kernels.triton.operands import (
    Scoring,
    chosen_places,
    load_rows,
    matrix_arg,
    reweigh,
    row_coefficients,
    row_numbers,
    score_tile,
)
from regaze.kernels.triton.plan import channel_arg


class SoftmaxArg(NamedTuple):
    """Sums of rows, [B, Hq, R]: weights are exp(s - shift) / total."""

    shift: Any
    total: Any


class SliceArg(NamedTuple):
    """Key columns [B or 1, n] int64, -1 for none; `columns` None: column i is key i."""

    columns: Any
    batch: int
    width: int


@triton.jit
def softmax_weights(scores, softmax, to, exists):
    """Weights [M, N] of scores in rows whose sums lie at `to` [M]; zeros in a row that sees nothing."""
    shift = tl.load(softmax.shift + to, mask=exists, other=0.0)
    total = tl.load(softmax.total + to, mask=exists, other=0.0)
    shift = tl.where(shift == float("-inf"), 0.0, shift)
    return tl.exp2((scores - shift[:, None]) * LOG2E) / tl.maximum(total, 1.0)[:, None]


@triton.jit
def slices_kernel(
    slices,
    q,
    k,
    rows,
    wanted,
    softmax,
    active,
    channels,
    coefficients,
    call,
    group,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of slices [B, Hq, R, n] of final weights."""
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    across = tl.cdiv(wanted.width, BLOCK_N)
    at = tl.program_id(0) // across * BLOCK_M + tl.arange(0, BLOCK_M)
    place = tl.program_id(0) % across * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = place
    if wanted.columns is not None:
        columns = tl.load(wanted.columns + b * wanted.batch + place, mask=place < wanted.width, other=-1)
        columns = columns.to(tl.int32)
    numbers, exists = row_numbers(rows, at)
    chosen = chosen_places(rows, b, at, exists)
    q_tile = load_rows(q, b, h, numbers, exists, D, BLOCK_D)
    inside = (columns >= 0) & (columns < call.keys)
    k_tile = tl.trans(load_rows(k, b, h // group, columns, inside, D, BLOCK_D))
    scores = score_tile(q_tile, k_tile, numbers, exists, chosen, columns, b, h, call, True, CAUSAL, PRECISION)
    to = (b * tl.num_programs(1) + h) * rows.length + at
    weights = softmax_weights(scores, softmax, to, exists)
    factors = row_coefficients(coefficients, to, exists, K)
    weights = reweigh(weights, factors, channels, chosen, columns, b, h, call, G, K)
    if active is not None:
        live = tl.load(active + b * rows.length + at, mask=exists, other=0) != 0
        weights = tl.where(live[:, None], weights, 0.0)
    there = exists[:, None] & (place < wanted.width)[None, :]
    tl.store(slices + to[:, None] * wanted.width + place[None, :], weights, mask=there)


@triton.jit
def column_sums_kernel(
    sums,
    q,
    k,
    rows,
    softmax,
    active,
    call,
    group,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums [B, Hq, Lk] over the rows of the list of the weights of BLOCK_N keys in one head."""
    start, h, b = tl.program_id(0) * BLOCK_N, tl.program_id(1), tl.program_id(2).to(tl.int64)
    columns = start + tl.arange(0, BLOCK_N)
    inside = columns < call.keys
    k_tile = tl.trans(load_rows(k, b, h // group, columns, inside, D, BLOCK_D))
    total = tl.zeros([BLOCK_N], tl.float32)
    earliest = 0
    if CAUSAL and rows.numbers is None:
        earliest = tl.maximum(start - (call.keys - call.queries), 0) // BLOCK_M * BLOCK_M
    for first in range(earliest, rows.length, BLOCK_M):
        at = first + tl.arange(0, BLOCK_M)
        numbers, exists = row_numbers(rows, at)
        if active is not None:
            exists = exists & (tl.load(active + b * rows.length + at, mask=exists, other=0) != 0)
        q_tile = load_rows(q, b, h, numbers, exists, D, BLOCK_D)
        scores = score_tile(
            q_tile, k_tile, numbers, exists, exists[:, None], columns, b, h, call, True, CAUSAL, PRECISION
        )
        to = (b * tl.num_programs(1) + h) * rows.length + at
        total += tl.sum(softmax_weights(scores, softmax, to, exists), 0)
    tl.store(sums + (b * tl.num_programs(1) + h) * call.keys + columns, total, mask=inside)


def row_slices(
    scoring: Scoring,
    shift: Tensor,
    total: Tensor,
    columns: Tensor | None,
    *,
    scaling: float,
    softcap: float | None,
    causal: bool,
    active: Tensor | None = None,
    groups: Tensor | None = None,
    weights: Tensor | None = None,
    num_groups: int = 0,
    coefficients: Tensor | None = None,
) -> Tensor:
    """Weights [B, Hq, R, n] fp32 of key `columns` ([B or 1, n] int64, -1 for none; None: all keys).

    They are final weights where `scoring` has a value gain or channel `coefficients` [B, Hq, R, K] are given.
    """
    return _row_slices(
        scoring.tensors, scoring.tile, shift, total, columns, active, groups, weights, num_groups,
        coefficients, scaling, softcap, causal,
    )  # fmt: skip


@operator("row_slices")
def _row_slices(
    tensors: list[Tensor | None],
    tile: Sequence[int],
    shift: Tensor,
    total: Tensor,
    columns: Tensor | None,
    active: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    coefficients: Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> Tensor:
    scoring = Scoring.of(tensors, tile)
    batch, heads, rows = scoring.sums_shape
    width = scoring.k.shape[2] if columns is None else columns.shape[1]
    slices = shift.new_empty(batch, heads, rows, width)
    if not slices.numel():
        return slices
    if columns is not None:
        columns = columns.contiguous()
    step = 0 if columns is None or columns.shape[0] == 1 else width
    constants = scoring.constants(causal)
    tiles = triton.cdiv(rows, constants["BLOCK_M"]) * triton.cdiv(width, constants["BLOCK_N"])
    slices_kernel[(tiles, heads, batch)](
        slices,
        matrix_arg(scoring.q),
        matrix_arg(scoring.k),
        scoring.rows_arg(),
        SliceArg(columns, step, width),
        SoftmaxArg(shift, total),
        active,
        channel_arg(groups, weights),
        coefficients,
        scoring.call_arg(scaling, softcap),
        scoring.group,
        G=num_groups if groups is not None else 0,
        K=0 if coefficients is None else coefficients.shape[3],
        **constants,
    )
    return slices


@_row_slices.register_fake
def _(
    tensors: list[Tensor | None],
    tile: Sequence[int],
    shift: Tensor,
    total: Tensor,
    columns: Tensor | None,
    active: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    coefficients: Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> Tensor:
    scoring = Scoring.of(tensors, tile)
    width = scoring.k.shape[2] if columns is None else columns.shape[1]
    return shift.new_empty(*scoring.sums_shape, width)


@operator("column_sums")
def column_sums(
    tensors: list[Tensor | None],
    tile: Sequence[int],
    shift: Tensor,
    total: Tensor,
    active: Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> Tensor:
    """Weights [B, Hq, Lk] summed over the rows of a `Scoring`, given as a list, that are `active` [B, R]."""
    scoring = Scoring.of(tensors, tile)
    batch, heads, _ = scoring.sums_shape
    keys = scoring.k.shape[2]
    sums = shift.new_empty(batch, heads, keys)
    constants = scoring.constants(causal)
    column_sums_kernel[(triton.cdiv(keys, constants["BLOCK_N"]), heads, batch)](
        sums,
        matrix_arg(scoring.q),
        matrix_arg(scoring.k),
        scoring.rows_arg(),
        SoftmaxArg(shift, total),
        active,
        scoring.call_arg(scaling, softcap),
        scoring.group,
        **constants,
    )
    return sums


@column_sums.register_fake
def _(
    tensors: list[Tensor | None],
    tile: Sequence[int],
    shift: Tensor,
    total: Tensor,
    active: Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> Tensor:
    q, k = tensors[:2]
    assert q is not None
    assert k is not None
    return shift.new_empty(q.shape[0], q.shape[1], k.shape[2])
