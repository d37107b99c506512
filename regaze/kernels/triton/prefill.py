"""Edited attention over many query rows, in memory linear in the lengths.

Rows that an edit leaves alone cost what flash attention costs: torch's own kernel where it serves them (no
mask, and the edited rows are few), else one pass of the kernel here. Only edited rows do more:

    an edit without a policy   one pass: flash attention with scores, weights and sums edited on the way
    an edit with a policy      pass 1 (row_stats.py) reads Q and K: statistics and masses of the edited rows
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

from regaze.kernels.spec import AttentionEdit, Stats, StatsRequest
from regaze.kernels.triton.arguments import (
    MatrixArg,
    PerRowArg,
    channel_arg,
    matrix_arg,
    per_row_arg,
    sink_arg,
)
from regaze.kernels.triton.block_mask import other_rows
from regaze.kernels.triton.call import Call, measure_rows, measured_beside
from regaze.kernels.triton.common import (
    LOG2E,
    load_sinks,
    per_row_place,
    round_to,
    softmax_step,
    varied,
    weighted_values,
)
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.row_list import (
    RowList,
    block_counts,
    edited_scores,
    load_coefficients,
    load_key_block,
    load_row_numbers,
    load_rows,
    load_selected,
    reweight,
    visited_block,
)
from regaze.kernels.triton.row_stats import MassChannels, RowStats
from regaze.kernels.triton.tiling import padded

#: If edited rows are at most this share of all, torch computes every row and these are overwritten.
FEW = 1 / 8

_PLAIN = AttentionEdit()


class OutArg(NamedTuple):
    """The output [B, Hq, Lq, Dv], and factors of it or None."""

    out: MatrixArg
    gain: PerRowArg | None


class PartialArg(NamedTuple):
    """Outputs of each split before division by the sum, [splits, B, Hq, R, Dv], and their maximum and sum."""

    acc: Any
    running_max: Any
    running_sum: Any


@triton.jit
def _attend_step(
    i, state, query_tile, key, value, rows, row_exists, selected, coefficients, block_map, channels, score,
    row_block, batch, head, gqa_ratio,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr, NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr,
    IS_MASKED: tl.constexpr, IS_CAUSAL: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Output [M, BLOCK_DV], maximum and sum [M] of a row block after one more key block."""
    acc, running_max, running_sum = state
    start = visited_block(i, block_map, row_block, batch, head) * BLOCK_N
    columns = start + tl.arange(0, BLOCK_N)
    kv_head = head // gqa_ratio
    key_tile = load_key_block(
        key, batch, kv_head, start, varied(score.num_keys), HEAD_DIM, BLOCK_D, BLOCK_N, not IS_MASKED
    )
    scores = edited_scores(
        query_tile, tl.trans(key_tile), rows, row_exists, selected, columns, batch, head, score,
        IS_MASKED, IS_CAUSAL, INPUT_PRECISION,
    )  # fmt: skip
    weights, rescale, running_max, running_sum = softmax_step(scores, running_max, running_sum)
    # The sum is that of the softmax: coefficients and value gain change what a row puts out, not this.
    weights = reweight(
        weights, coefficients, channels, selected, columns, batch, head, score, NUM_GROUPS, NUM_CHANNELS
    )
    value_tile = load_key_block(
        value, batch, kv_head, start, varied(score.num_keys), VALUE_DIM, BLOCK_DV, BLOCK_N, not IS_MASKED
    )
    reweighted: tl.constexpr = NUM_CHANNELS > 0 or score.edit.value_gain.ptr is not None
    acc = acc * rescale[:, None] + weighted_values(weights, value_tile, reweighted, INPUT_PRECISION)
    return acc, running_max, running_sum


@triton.jit
def _store_rows(
    to, acc, running_sum, batch, head, rows, row_exists, VALUE_DIM: tl.constexpr, BLOCK_DV: tl.constexpr
):
    """Rows of the output: acc [M, BLOCK_DV] over the sum [M], times their gain; zeros if nothing is seen."""
    factor = 1.0 / tl.maximum(running_sum, 1.0)  # at least the 1 of the strongest key, unless there is none
    if to.gain is not None:
        gain_ptrs = per_row_place(to.gain, batch, head, rows)
        factor *= tl.load(gain_ptrs, mask=row_exists, other=0.0).to(tl.float32)
    d = tl.arange(0, BLOCK_DV)
    base = to.out.ptr + batch * to.out.stride_b + head * to.out.stride_h
    out_ptrs = base + rows[:, None].to(tl.int64) * to.out.stride_l + d[None, :]
    out = round_to(acc * factor[:, None], to.out.ptr.dtype.element_ty)
    tl.store(out_ptrs, out, mask=row_exists[:, None] & (d < VALUE_DIM)[None, :])


@triton.jit(do_not_specialize=["num_splits"])
def attend_kernel(
    to, partial, query, key, value, row_list, block_map, channels, coefficients_ptr, sinks, score,
    gqa_ratio, num_splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr,
    IS_CAUSAL: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of BLOCK_M rows of one head over one share of the keys that they visit."""
    # The last rows of a causal mask see most keys: they go first.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row_block, split = program // num_splits, program % num_splits
    offsets = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, row_exists = load_row_numbers(row_list, offsets)
    selected = load_selected(row_list, batch, offsets, row_exists)
    query_tile = load_rows(query, batch, head, rows, row_exists, HEAD_DIM, BLOCK_D)
    place = (batch * tl.num_programs(1) + head) * varied(row_list.length) + offsets
    coefficients = load_coefficients(coefficients_ptr, place, row_exists, NUM_CHANNELS)
    num_full, num_visited = block_counts(
        block_map, row_block, batch, head, rows, row_exists, score, IS_CAUSAL, BLOCK_N
    )
    share = tl.cdiv(num_visited, num_splits)
    first, last = split * share, tl.minimum((split + 1) * share, num_visited)

    running_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_M], tl.float32)
    if sinks is not None:  # one more key, whose value is 0, in the first split
        running_max = tl.where(split == 0, load_sinks(sinks, batch, head, rows), running_max)
        running_sum = tl.where(split == 0, 1.0, running_sum)
    state = (tl.zeros([BLOCK_M, BLOCK_DV], tl.float32), running_max, running_sum)
    for i in range(first, tl.minimum(last, num_full)):  # blocks that all rows see in full: no mask is read
        state = _attend_step(
            i, state, query_tile, key, value, rows, row_exists, selected, coefficients, block_map, channels,
            score, row_block, batch, head, gqa_ratio, HEAD_DIM, BLOCK_D, VALUE_DIM, BLOCK_DV, BLOCK_N,
            NUM_GROUPS, NUM_CHANNELS, False, IS_CAUSAL, INPUT_PRECISION,
        )  # fmt: skip
    for i in range(tl.maximum(first, num_full), last):
        state = _attend_step(
            i, state, query_tile, key, value, rows, row_exists, selected, coefficients, block_map, channels,
            score, row_block, batch, head, gqa_ratio, HEAD_DIM, BLOCK_D, VALUE_DIM, BLOCK_DV, BLOCK_N,
            NUM_GROUPS, NUM_CHANNELS, True, IS_CAUSAL, INPUT_PRECISION,
        )  # fmt: skip

    acc, running_max, running_sum = state
    if partial is None:
        _store_rows(to, acc, running_sum, batch, head, rows, row_exists, VALUE_DIM, BLOCK_DV)
    else:
        d = tl.arange(0, BLOCK_DV)
        place += split.to(tl.int64) * tl.num_programs(2) * tl.num_programs(1) * varied(row_list.length)
        tl.store(partial.running_max + place, running_max, mask=row_exists)
        tl.store(partial.running_sum + place, running_sum, mask=row_exists)
        in_bounds = row_exists[:, None] & (d < VALUE_DIM)[None, :]
        tl.store(partial.acc + place[:, None] * VALUE_DIM + d[None, :], acc, mask=in_bounds)


@triton.jit(do_not_specialize=["num_splits"])
def merge_outputs_kernel(
    to, partial, row_list, num_splits,
    VALUE_DIM: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The outputs of all splits of BLOCK_M rows of one head as one."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    offsets = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, row_exists = load_row_numbers(row_list, offsets)
    d = tl.arange(0, BLOCK_DV)
    in_bounds = row_exists[:, None] & (d < VALUE_DIM)[None, :]
    stride_s = tl.num_programs(2).to(tl.int64) * tl.num_programs(1) * varied(row_list.length)
    place = (batch * tl.num_programs(1) + head) * varied(row_list.length) + offsets
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for s in range(num_splits):
        max_ptrs = partial.running_max + s * stride_s + place
        row_max = tl.maximum(row_max, tl.load(max_ptrs, mask=row_exists, other=float("-inf")))
    shift = tl.where(row_max == float("-inf"), 0.0, row_max)  # -inf - -inf would be NaN
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for s in range(num_splits):
        here = s * stride_s + place
        split_max = tl.load(partial.running_max + here, mask=row_exists, other=0.0)
        scale = tl.exp2((split_max - shift) * LOG2E)
        row_sum += scale * tl.load(partial.running_sum + here, mask=row_exists, other=0.0)
        part = tl.load(partial.acc + here[:, None] * VALUE_DIM + d[None, :], mask=in_bounds, other=0.0)
        acc += scale[:, None] * part
    _store_rows(to, acc, row_sum, batch, head, rows, row_exists, VALUE_DIM, BLOCK_DV)


# --- the host's side


@operator("attend_rows", writes=("out",))
def attend_rows(
    out: Tensor,
    tensors: list[Tensor | None],
    tiling: Sequence[int],
    sinks: Tensor | None,
    sink: Tensor | None,
    head_gain: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    coefficients: Tensor | None,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> None:
    """Write the rows of a `RowList`, given as a list, to out [B, Hq, Lq, Dv], whose last stride is 1.

    `sinks` [Hq] are the model's, `sink` those of the edit, `head_gain` is [B or 1, Hq] or [B or 1, Hq, Lq],
    `coefficients` [B, Hq, R, K] of the channels.
    """
    rows = RowList.of(tensors, tiling)
    assert rows.value is not None
    batch, heads, count = rows.shape
    if count == 0:
        return
    splits, value_dim = rows.num_splits, rows.value.shape[3]
    constants, dims = rows.constants(causal), {"VALUE_DIM": value_dim, "BLOCK_DV": padded(value_dim)}
    out_matrix = MatrixArg(out, out.stride(0), out.stride(1), out.stride(2))
    to, partial = OutArg(out_matrix, per_row_arg(head_gain)), None
    if splits > 1:
        partial = PartialArg(
            *(
                torch.empty(splits, batch, heads, count, *last, device=out.device, dtype=torch.float32)
                for last in ((value_dim,), (), ())
            )
        )
    attend_kernel[(triton.cdiv(count, constants["BLOCK_M"]) * splits, heads, batch)](
        to,
        partial,
        matrix_arg(rows.query),
        matrix_arg(rows.key),
        matrix_arg(rows.value),
        rows.rows_arg(),
        rows.blocks_arg(),
        channel_arg(groups, weights),
        coefficients,
        sink_arg(sinks, sink),
        rows.score_arg(scaling, softcap),
        rows.gqa_ratio,
        splits,
        NUM_GROUPS=num_groups if groups is not None else 0,
        NUM_CHANNELS=0 if coefficients is None else coefficients.shape[3],
        **dims,
        **constants,
    )
    if partial is not None:
        merge_outputs_kernel[(triton.cdiv(count, 16), heads, batch)](
            to, partial, rows.rows_arg(), splits, BLOCK_M=16, **dims, num_warps=4, **FUSED
        )


@attend_rows.register_fake
def _(
    out: Tensor,
    tensors: list[Tensor | None],
    tiling: Sequence[int],
    sinks: Tensor | None,
    sink: Tensor | None,
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


def attend_prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edit: AttentionEdit,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Stats | None]:
    """Edited attention, arguments as for `attend`."""
    call = Call(query, key, value, edit, mask, scaling, is_causal, softcap, sinks)
    index = call.changed_rows()
    stats = None
    if index is None:  # every row
        out = _empty_output(query, value)
        stats = _write(call, out, call.row_list(None, edited=True))
    else:
        out = _plain_rows(call, value, index)
        if len(index):
            stats = _write(call, out, call.row_list(index, edited=True))
    return out, None if edit.stats is None else measure_rows(call, edit.stats, stats)


def prefill_stats(
    query: Tensor,
    key: Tensor,
    request: StatsRequest,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Stats:
    """Statistics of plain attention; see `attention_stats`."""
    call = Call(query, key, None, request.as_edit, mask, scaling, is_causal, softcap, sinks)
    return measure_rows(call, request)


def _write(call: Call, out: Tensor, rows: RowList) -> RowStats | None:
    """Write `rows`, which are scored under the edit, to the output.

    Returns their statistics where the first pass could serve the request of the edit.
    """
    edit, request = call.edit, call.edit.stats
    coefficients, stats, serves = None, None, measured_beside(edit, request)
    if edit.policy is not None:
        stats = call.row_stats(rows, edit.policy, request if serves else None, edited=True)
        coefficients = stats.coefficients
    channels = MassChannels.of(edit.channels)
    attend_rows(
        out, rows.tensors, rows.tiling, call.sinks, edit.sink, edit.head_gain, *channels, coefficients,
        **call.options,
    )  # fmt: skip
    return stats if serves else None


def _empty_output(query: Tensor, value: Tensor) -> Tensor:
    """An output [B, Hq, Lq, Dv] in the memory order [B, Lq, Hq, Dv], which the next layer reads."""
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)


def _plain_rows(call: Call, value: Tensor, index: Tensor) -> Tensor:
    """The output, done in the rows that `index` [R] does not name: plain but for sinks and head gain."""
    query, key, gain, sinks = call.query, call.key, call.edit.head_gain, (call.sinks, call.edit.sink)
    if _torch_serves(call, value) and len(index) <= FEW * call.num_queries:
        shared = query.shape[1] != key.shape[1]
        causal = call.causal and call.num_queries > 1
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=call.scaling, enable_gqa=shared
        )
        if gain is not None:
            out *= gain[..., None] if gain.dim() == 3 else gain[..., None, None]
        return out
    out = _empty_output(query, value)
    others = other_rows(index, call.num_queries) if len(index) else None
    plain = replace(call, edit=_PLAIN)  # no unmasked rectangle has any of these rows
    rows = plain.row_list(others, edited=False, light=True)
    attend_rows(out, rows.tensors, rows.tiling, *sinks, gain, None, None, 0, None, **call.options)
    return out


def _torch_serves(call: Call, value: Tensor) -> bool:
    """Whether torch has a fused kernel for the plain rows of this call, on the device of its tensors."""
    query, key = call.query, call.key
    if call.mask is not None or call.softcap is not None or call.sinks is not None:
        return False
    if call.edit.sink is not None:
        return False
    if call.causal and call.num_queries != key.shape[2]:  # torch aligns causal rows to the first key
        return False
    fused = query.dtype in (torch.float16, torch.bfloat16) or query.shape[1] == key.shape[1]
    return (fused or not query.is_cuda) and query.shape[3] == value.shape[3]
