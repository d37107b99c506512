"""Attention weights of chosen rows in full: slices of chosen columns, and sums of columns over rows.

With the statistics of a row known (row_stats.py), any of its weights is exp(s - shift) / total. `row_slices`
computes chosen rows x columns in one tile per program and reads only the keys of these columns. `column_sums`
keeps a block of keys and streams the rows past it, so that sums [B, Hq, Lk] over any number of rows take no
memory but their own.

What depends on the weights *after* an edit (the entropy of an edited row) is measured from slices of a
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

from regaze.kernels.triton.arguments import channel_arg, matrix_arg, varying
from regaze.kernels.triton.common import LOG2E, varied
from regaze.kernels.triton.custom_op import operator
from regaze.kernels.triton.row_list import (
    RowList,
    edited_scores,
    load_coefficients,
    load_row_numbers,
    load_rows,
    load_selected,
    reweight,
)


class SoftmaxArg(NamedTuple):
    """Statistics of rows, [B, Hq, R]: weights are exp(s - shift) / total."""

    shift_ptr: Any
    total_ptr: Any


class SliceArg(NamedTuple):
    """Key columns [B or 1, n] int64, -1 for none; without `columns_ptr`, column i is key i."""

    columns_ptr: Any
    stride_b: int
    num_columns: int


@triton.jit
def softmax_weights(scores, softmax, place, row_exists):
    """Weights [M, N] of scores in rows with statistics at `place` [M]; zeros in a row that sees nothing."""
    shift = tl.load(softmax.shift_ptr + place, mask=row_exists, other=0.0)
    total = tl.load(softmax.total_ptr + place, mask=row_exists, other=0.0)
    shift = tl.where(shift == float("-inf"), 0.0, shift)
    # A total is at least the 1 of the strongest key, unless there is none.
    return tl.exp2((scores - shift[:, None]) * LOG2E) / tl.maximum(total, 1.0)[:, None]


@triton.jit
def row_slices_kernel(
    slices_ptr, query, key, row_list, slice_columns, softmax, active_ptr, channels, coefficients_ptr, score,
    gqa_ratio,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr,
    IS_CAUSAL: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of slices [B, Hq, R, n] of final weights."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    column_tiles = tl.cdiv(varied(slice_columns.num_columns), BLOCK_N)
    offsets = tl.program_id(0) // column_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    slots = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = slots
    if slice_columns.columns_ptr is not None:
        column_ptrs = slice_columns.columns_ptr + batch * varied(slice_columns.stride_b) + slots
        columns = tl.load(column_ptrs, mask=slots < varied(slice_columns.num_columns), other=-1).to(tl.int32)
    rows, row_exists = load_row_numbers(row_list, offsets)
    selected = load_selected(row_list, batch, offsets, row_exists)
    query_tile = load_rows(query, batch, head, rows, row_exists, HEAD_DIM, BLOCK_D)
    key_exists = (columns >= 0) & (columns < varied(score.num_keys))
    key_tile = tl.trans(load_rows(key, batch, head // gqa_ratio, columns, key_exists, HEAD_DIM, BLOCK_D))
    scores = edited_scores(
        query_tile, key_tile, rows, row_exists, selected, columns, batch, head, score,
        True, IS_CAUSAL, INPUT_PRECISION,
    )  # fmt: skip
    place = (batch * tl.num_programs(1) + head) * varied(row_list.length) + offsets
    weights = softmax_weights(scores, softmax, place, row_exists)
    coefficients = load_coefficients(coefficients_ptr, place, row_exists, NUM_CHANNELS)
    weights = reweight(
        weights, coefficients, channels, selected, columns, batch, head, score, NUM_GROUPS, NUM_CHANNELS
    )
    if active_ptr is not None:
        active = (
            tl.load(active_ptr + batch * varied(row_list.length) + offsets, mask=row_exists, other=0) != 0
        )
        weights = tl.where(active[:, None], weights, 0.0)
    in_bounds = row_exists[:, None] & (slots < varied(slice_columns.num_columns))[None, :]
    tl.store(
        slices_ptr + place[:, None] * varied(slice_columns.num_columns) + slots[None, :],
        weights,
        mask=in_bounds,
    )


@triton.jit
def column_sums_kernel(
    sums_ptr, query, key, row_list, softmax, active_ptr, row_weights_ptr, score, gqa_ratio,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_CAUSAL: tl.constexpr, INPUT_PRECISION: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Sum or largest [B, Hq, Lk] over the rows of the list of the weights of BLOCK_N keys in one head."""
    start, head, batch = tl.program_id(0) * BLOCK_N, tl.program_id(1), tl.program_id(2).to(tl.int64)
    columns = start + tl.arange(0, BLOCK_N)
    key_exists = columns < varied(score.num_keys)
    key_tile = tl.trans(load_rows(key, batch, head // gqa_ratio, columns, key_exists, HEAD_DIM, BLOCK_D))
    sums = tl.zeros([BLOCK_N], tl.float32)
    first_row = 0
    if IS_CAUSAL and row_list.row_index_ptr is None:  # earlier rows do not see these keys
        first_key = varied(score.num_keys) - varied(score.num_queries)  # that of row 0
        first_row = tl.maximum(start - first_key, 0) // BLOCK_M * BLOCK_M
    for row_start in range(first_row, varied(row_list.length), BLOCK_M):
        offsets = row_start + tl.arange(0, BLOCK_M)
        rows, row_exists = load_row_numbers(row_list, offsets)
        if active_ptr is not None:
            active = (
                tl.load(active_ptr + batch * varied(row_list.length) + offsets, mask=row_exists, other=0) != 0
            )
            row_exists = row_exists & active
        query_tile = load_rows(query, batch, head, rows, row_exists, HEAD_DIM, BLOCK_D)
        scores = edited_scores(
            query_tile, key_tile, rows, row_exists, row_exists[:, None], columns, batch, head, score,
            True, IS_CAUSAL, INPUT_PRECISION,
        )  # fmt: skip
        place = (batch * tl.num_programs(1) + head) * varied(row_list.length) + offsets
        weights = softmax_weights(scores, softmax, place, row_exists)
        if row_weights_ptr is not None:
            factor_ptrs = row_weights_ptr + batch * varied(row_list.length) + offsets
            weights *= tl.load(factor_ptrs, mask=row_exists, other=0.0)[:, None]
        if LARGEST:
            sums = tl.maximum(sums, tl.max(weights, 0))
        else:
            sums += tl.sum(weights, 0)
    sums_ptrs = sums_ptr + (batch * tl.num_programs(1) + head) * varied(score.num_keys) + columns
    tl.store(sums_ptrs, sums, mask=key_exists)


# --- the host's side


def row_slices(
    rows: RowList,
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

    They are final weights where `rows` has a value gain or channel `coefficients` [B, Hq, R, K] are given.
    """
    return _row_slices(
        rows.tensors, rows.tiling, shift, total, columns, active, groups, weights, num_groups,
        coefficients, scaling, softcap, causal,
    )  # fmt: skip


@operator("row_slices")
def _row_slices(
    tensors: list[Tensor | None],
    tiling: Sequence[int],
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
    rows = RowList.of(tensors, tiling)
    batch, heads, count = rows.shape
    width = rows.key.shape[2] if columns is None else columns.shape[1]
    slices = shift.new_empty(batch, heads, count, width)
    if not slices.numel():
        return slices
    if columns is not None:
        columns = columns.contiguous()
    stride_b = 0 if columns is None or columns.shape[0] == 1 else width
    constants = rows.constants(causal)
    tiles = triton.cdiv(count, constants["BLOCK_M"]) * triton.cdiv(width, constants["BLOCK_N"])
    row_slices_kernel[(tiles, heads, batch)](
        slices,
        matrix_arg(rows.query),
        matrix_arg(rows.key),
        rows.rows_arg(),
        SliceArg(columns, varying(stride_b), varying(width)),
        SoftmaxArg(shift, total),
        active,
        channel_arg(groups, weights),
        coefficients,
        rows.score_arg(scaling, softcap),
        rows.gqa_ratio,
        NUM_GROUPS=num_groups if groups is not None else 0,
        NUM_CHANNELS=0 if coefficients is None else coefficients.shape[3],
        **constants,
    )
    return slices


@_row_slices.register_fake
def _(
    tensors: list[Tensor | None],
    tiling: Sequence[int],
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
    rows = RowList.of(tensors, tiling)
    return shift.new_empty(*rows.shape, rows.key.shape[2] if columns is None else columns.shape[1])


@operator("column_sums")
def column_sums(
    tensors: list[Tensor | None],
    tiling: Sequence[int],
    shift: Tensor,
    total: Tensor,
    active: Tensor | None,
    row_weights: Tensor | None,
    largest: bool,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> Tensor:
    """Sum or `largest` [B, Hq, Lk] over the rows of a `RowList`, given as a list, that are `active` [B, R].

    Their weights are multiplied with `row_weights` [B, R].
    """
    rows = RowList.of(tensors, tiling)
    batch, heads, _ = rows.shape
    keys = rows.key.shape[2]
    sums = shift.new_empty(batch, heads, keys)
    constants = rows.constants(causal)
    column_sums_kernel[(triton.cdiv(keys, constants["BLOCK_N"]), heads, batch)](
        sums,
        matrix_arg(rows.query),
        matrix_arg(rows.key),
        rows.rows_arg(),
        SoftmaxArg(shift, total),
        active,
        row_weights,
        rows.score_arg(scaling, softcap),
        rows.gqa_ratio,
        LARGEST=largest,
        **constants,
    )
    return sums


@column_sums.register_fake
def _(
    tensors: list[Tensor | None],
    tiling: Sequence[int],
    shift: Tensor,
    total: Tensor,
    active: Tensor | None,
    row_weights: Tensor | None,
    largest: bool,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> Tensor:
    rows = RowList.of(tensors, tiling)
    return shift.new_empty(rows.query.shape[0], rows.query.shape[1], rows.key.shape[2])
