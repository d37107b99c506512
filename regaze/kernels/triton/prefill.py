"""Edited attention over many query rows, in memory linear in the lengths.

Rows that an edit leaves alone cost what flash attention costs: torch's own kernel where it serves them (no
mask, and the edited rows are few), else one pass of the kernel here. Only edited rows do more:

    an edit without a policy   one pass: flash attention with scores, weights and sums edited on the way
    an edit with a policy      pass 1 (sums.py) reads Q and K: sums and channel masses of the edited rows
                               policy: masses [B, Hq, R, K] -> coefficients, on the device
                               pass 2 reads Q, K and V: every weight times sum_k coef_k u_k[j]

Both write their rows in place, so an edit costs O(R Lk) work and O(R) memory beside the plain output. A few
rows leave most of a device idle: their keys are then split over programs, which write fp32 partial outputs,
and a second kernel adds these up. Masks are read through a block map (block_mask.py): hidden blocks are
skipped, wholly visible blocks read no mask. Without a mask, causal rows stop at their last key and test only
the blocks on the diagonal.

Memory traffic per row block and head: Q and the output once, K and V of the visited blocks once (from L2
where row blocks of a head run side by side; the heads of a group share them), the mask of partly seen blocks.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.spec import AttentionEdit, RowSelection, Stats, StatsRequest
from regaze.kernels.triton.block_mask import other_rows
from regaze.kernels.triton.common import LOG2E, dot, narrow, softmax_step
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.operands import (
    MatrixArg,
    Scoring,
    chosen_places,
    load_block,
    load_rows,
    matrix_arg,
    padded,
    reweigh,
    row_coefficients,
    row_numbers,
    score_tile,
    visited,
    visits,
)
from regaze.kernels.triton.plan import channel_arg
from regaze.kernels.triton.prefill_call import Call, measure_rows, sum_columns

#: If edited rows are at most this share of all, torch computes every row and these are overwritten.
FEW = 1 / 8


_PLAIN = AttentionEdit()


class OutArg(NamedTuple):
    """The output [B, Hq, Lq, Dv], and [B or 1, Hq, Lq or 1] factors of it or None."""

    out: MatrixArg
    gain: Any
    gain_batch: int
    gain_head: int
    gain_row: int


class PartialArg(NamedTuple):
    """Outputs of each split before division by the total, [splits, B, Hq, R, Dv], and their sums."""

    acc: Any
    top: Any
    total: Any


@triton.jit
def _attend_step(
    i,
    state,
    q_tile,
    k,
    v,
    numbers,
    exists,
    chosen,
    coefficients,
    blocks,
    channels,
    call,
    block,
    b,
    h,
    group,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Output, strongest score and total of a row block after one more key block."""
    acc, top, total = state
    start = visited(i, blocks, block, b, h) * BLOCK_N
    columns = start + tl.arange(0, BLOCK_N)
    k_tile = tl.trans(load_block(k, b, h // group, start, call.keys, D, BLOCK_D, BLOCK_N, not MASKED))
    scores = score_tile(
        q_tile, k_tile, numbers, exists, chosen, columns, b, h, call, MASKED, CAUSAL, PRECISION
    )
    weights, rescale, top, total = softmax_step(scores, top, total)
    weights = reweigh(weights, coefficients, channels, chosen, columns, b, h, call, G, K)
    v_tile = load_block(v, b, h // group, start, call.keys, DV, BLOCK_DV, BLOCK_N, not MASKED)
    acc = acc * rescale[:, None] + dot(narrow(weights, v_tile.dtype), v_tile, PRECISION)
    return acc, top, total


@triton.jit
def _store_rows(to, acc, total, b, h, numbers, exists, DV: tl.constexpr, BLOCK_DV: tl.constexpr):
    """Rows of the output: acc [M, BLOCK_DV] over total [M], times their gain; zeros where nothing is seen."""
    share = 1.0 / tl.maximum(total, 1.0)  # it is at least the 1 of the strongest key, unless there is none
    if to.gain is not None:
        at = b * to.gain_batch + h * to.gain_head + numbers * to.gain_row
        share *= tl.load(to.gain + at, mask=exists, other=0.0).to(tl.float32)
    d = tl.arange(0, BLOCK_DV)
    at = b * to.out.batch + h * to.out.head + numbers[:, None].to(tl.int64) * to.out.row + d[None, :]
    out = narrow(acc * share[:, None], to.out.tensor.dtype.element_ty)
    tl.store(to.out.tensor + at, out, mask=exists[:, None] & (d < DV)[None, :])


@triton.jit
def attend_kernel(
    to,
    partial,
    q,
    k,
    v,
    rows,
    blocks,
    channels,
    coefficients,
    sinks,
    call,
    group,
    splits,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention of BLOCK_M rows of one head over one share of the keys that they visit."""
    # The last rows of a causal mask see most keys: they go first.
    turn = tl.num_programs(0) - 1 - tl.program_id(0)
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    block, split = turn // splits, turn % splits
    at = block * BLOCK_M + tl.arange(0, BLOCK_M)
    numbers, exists = row_numbers(rows, at)
    chosen = chosen_places(rows, b, at, exists)
    q_tile = load_rows(q, b, h, numbers, exists, D, BLOCK_D)
    to_row = (b * tl.num_programs(1) + h) * rows.length + at
    factors = row_coefficients(coefficients, to_row, exists, K)
    whole, every = visits(blocks, block, b, h, numbers, exists, call, CAUSAL, BLOCK_N)
    share = tl.cdiv(every, splits)
    first, last = split * share, tl.minimum((split + 1) * share, every)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if sinks is not None:  # one more key, whose value is 0, in the first split
        top = tl.where(split == 0, tl.load(sinks + h).to(tl.float32), top)
        total = tl.where(split == 0, 1.0, total)
    state = (tl.zeros([BLOCK_M, BLOCK_DV], tl.float32), top, total)
    for i in range(first, tl.minimum(last, whole)):
        state = _attend_step(
            i, state, q_tile, k, v, numbers, exists, chosen, factors, blocks, channels, call, block, b, h,
            group, D, BLOCK_D, DV, BLOCK_DV, BLOCK_N, G, K, False, CAUSAL, PRECISION,
        )  # fmt: skip
    for i in range(tl.maximum(first, whole), last):
        state = _attend_step(
            i, state, q_tile, k, v, numbers, exists, chosen, factors, blocks, channels, call, block, b, h,
            group, D, BLOCK_D, DV, BLOCK_DV, BLOCK_N, G, K, True, CAUSAL, PRECISION,
        )  # fmt: skip

    acc, top, total = state
    if partial is None:
        _store_rows(to, acc, total, b, h, numbers, exists, DV, BLOCK_DV)
    else:
        d = tl.arange(0, BLOCK_DV)
        to_row += split.to(tl.int64) * tl.num_programs(2) * tl.num_programs(1) * rows.length
        tl.store(partial.top + to_row, top, mask=exists)
        tl.store(partial.total + to_row, total, mask=exists)
        wanted = exists[:, None] & (d < DV)[None, :]
        tl.store(partial.acc + to_row[:, None] * DV + d[None, :], acc, mask=wanted)


@triton.jit
def combine_kernel(
    to,
    partial,
    rows,
    splits,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The outputs of all splits of BLOCK_M rows of one head as one."""
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    numbers, exists = row_numbers(rows, at)
    d = tl.arange(0, BLOCK_DV)
    wanted = exists[:, None] & (d < DV)[None, :]
    step = tl.num_programs(2).to(tl.int64) * tl.num_programs(1) * rows.length
    first = (b * tl.num_programs(1) + h) * rows.length + at
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for s in range(splits):
        top = tl.maximum(top, tl.load(partial.top + s * step + first, mask=exists, other=float("-inf")))
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for s in range(splits):
        here = s * step + first
        scale = tl.exp2((tl.load(partial.top + here, mask=exists, other=0.0) - shift) * LOG2E)
        total += scale * tl.load(partial.total + here, mask=exists, other=0.0)
        part = tl.load(partial.acc + here[:, None] * DV + d[None, :], mask=wanted, other=0.0)
        acc += scale[:, None] * part
    _store_rows(to, acc, total, b, h, numbers, exists, DV, BLOCK_DV)


@operator("attend_rows", writes=("out",))
def attend_rows(
    out: Tensor,
    tensors: list[Tensor | None],
    tile: Sequence[int],
    sinks: Tensor | None,
    head_gain: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    coefficients: Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> None:
    """Write the rows of a `Scoring`, given as a list, to out [B, Hq, Lq, Dv], whose last stride is 1.

    `head_gain` is [B or 1, Hq] or [B or 1, Hq, Lq], `coefficients` [B, Hq, R, K] of the channels.
    """
    scoring = Scoring.of(tensors, tile)
    assert scoring.v is not None
    batch, heads, rows = scoring.sums_shape
    if rows == 0:
        return
    splits, value_dim = scoring.splits(), scoring.v.shape[3]
    constants, dims = scoring.constants(causal), {"DV": value_dim, "BLOCK_DV": padded(value_dim)}
    to, partial = _out_arg(out, head_gain), None
    if splits > 1:
        acc, top, total = (
            torch.empty(splits, batch, heads, rows, *last, device=out.device, dtype=torch.float32)
            for last in ((value_dim,), (), ())
        )
        partial = PartialArg(acc, top, total)
    attend_kernel[(triton.cdiv(rows, constants["BLOCK_M"]) * splits, heads, batch)](
        to,
        partial,
        matrix_arg(scoring.q),
        matrix_arg(scoring.k),
        matrix_arg(scoring.v),
        scoring.rows_arg(),
        scoring.blocks_arg(),
        channel_arg(groups, weights),
        coefficients,
        sinks,
        scoring.call_arg(scaling, softcap),
        scoring.group,
        splits,
        G=num_groups if groups is not None else 0,
        K=0 if coefficients is None else coefficients.shape[3],
        **dims,
        **constants,
    )
    if partial is not None:
        combine_kernel[(triton.cdiv(rows, 16), heads, batch)](
            to, partial, scoring.rows_arg(), splits, BLOCK_M=16, **dims, num_warps=4, **FUSED
        )


@attend_rows.register_fake
def _(
    out: Tensor,
    tensors: list[Tensor | None],
    tile: Sequence[int],
    sinks: Tensor | None,
    head_gain: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    coefficients: Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> None:
    return None


def _out_arg(out: Tensor, gain: Tensor | None) -> OutArg:
    steps = [0, 0, 0]
    if gain is not None:
        steps[: gain.dim()] = [gain.stride(d) if gain.shape[d] > 1 else 0 for d in range(gain.dim())]
    return OutArg(MatrixArg(out, out.stride(0), out.stride(1), out.stride(2)), gain, *steps)


def attend_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edit: AttentionEdit,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Stats | None]:
    """Edited attention of q [B, Hq, Lq, D] over k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv]; see `attend`."""
    call = Call(q, k, v, edit, mask, scaling, is_causal, softcap, sinks)
    index = call.changed_rows()
    if index is None:  # every row
        out = _room(q, v)
        _write(call, out, call.scoring(None, edited=True))
    else:
        out = _plain_rows(call, v, index)
        if len(index):
            _write(call, out, call.scoring(index, edited=True))
    return out, None if edit.stats is None else measure_rows(call, edit.stats)


def observe_prefill(
    q: Tensor,
    k: Tensor,
    request: StatsRequest,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Stats:
    """Statistics of plain attention; see `attention_stats`."""
    return measure_rows(Call(q, k, None, request.as_edit, mask, scaling, is_causal, softcap, sinks), request)


def column_sums_triton(
    q: Tensor,
    k: Tensor,
    rows: RowSelection | None,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Weights of plain attention [B, Hq, Lk] summed over `rows`; see `column_sums`."""
    return sum_columns(Call(q, k, None, _PLAIN, mask, scaling, is_causal, softcap, sinks), rows)


def _write(call: Call, out: Tensor, scoring: Scoring) -> None:
    """Write the rows of `scoring`, which were scored under the edit, to the output."""
    edit, channels = call.edit, call.edit.channels
    parts = (None, None, 0) if channels is None else (channels.groups, channels.weights, channels.num_groups)
    coefficients = call.coefficients(scoring)
    attend_rows(
        out, scoring.tensors, scoring.tile, call.sinks, edit.head_gain, *parts, coefficients, **call.options
    )


def _room(q: Tensor, v: Tensor) -> Tensor:
    """An output [B, Hq, Lq, Dv] in the memory order [B, Lq, Hq, Dv], which the next layer reads."""
    batch, heads, queries, _ = q.shape
    return q.new_empty(batch, queries, heads, v.shape[3]).transpose(1, 2)


def _plain_rows(call: Call, v: Tensor, index: Tensor) -> Tensor:
    """The output, done in the rows that `index` [R] does not name: plain attention but for the head gain."""
    gain = call.edit.head_gain
    if _torch_serves(call, v) and len(index) <= FEW * call.queries:
        shared = call.q.shape[1] != call.k.shape[1]
        causal = call.causal and call.queries > 1
        out = F.scaled_dot_product_attention(
            call.q, call.k, v, is_causal=causal, scale=call.scaling, enable_gqa=shared
        )
        if gain is not None:
            out *= gain[..., None] if gain.dim() == 3 else gain[..., None, None]
        return out
    out = _room(call.q, v)
    others = other_rows(index, call.queries) if len(index) else None
    plain = replace(call, edit=_PLAIN)  # no opening has any of these rows
    scoring = plain.scoring(others, edited=False, light=True)
    attend_rows(out, scoring.tensors, scoring.tile, call.sinks, gain, None, None, 0, None, **call.options)
    return out


def _torch_serves(call: Call, v: Tensor) -> bool:
    """Whether torch has a fused kernel for the plain rows of this call, on the device of its tensors."""
    q, k = call.q, call.k
    if call.mask is not None or call.softcap is not None or call.sinks is not None:
        return False
    if call.causal and call.queries != k.shape[2]:  # torch aligns causal rows to the first key
        return False
    fused = q.dtype in (torch.float16, torch.bfloat16) or q.shape[1] == k.shape[1] or not q.is_cuda
    return fused and q.shape[3] == v.shape[3]
