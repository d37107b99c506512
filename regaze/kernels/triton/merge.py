"""The second half of decoding: splits joined, the policy run, output and statistics written.

One program joins the splits of one row for a block of value columns. It brings the sums of every split to a
common maximum, adds them up in the order of the splits, runs the device function of the policy on the masses
(each program for itself: they are a few numbers), and writes the weighted outputs. Further programs of the
same launch write the statistics of the rows on record. Coefficients of a policy that couples heads, or that
runs in torch, are given to this kernel (policy.py).
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

from regaze.kernels.triton.common import LN2, LOG2E, TINY, narrow
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.operands import MatrixArg
from regaze.kernels.triton.plan import column_arg, power_of_two
from regaze.kernels.triton.policy import device_function, numbers_on
from regaze.kernels.triton.splits import MEASURED, SUMS, merge_splits

#: Value columns of a program, and splits that it reads at a time.
BLOCK_V = 64
STEP = 8


class PolicyArg(NamedTuple):
    """Numbers of a device function or coefficients [B, Hq, Lq, K]; rows the edit selects, [B or 1, 1, Lq]."""

    numbers: Any
    coefficients: Any
    selected: Any


class RecordArg(NamedTuple):
    """Where statistics [B, Hq, R] and [B, Hq, R, K] go, None for those that nobody wants.

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
def decode_coefficients(
    at,
    batch,
    head,
    row,
    sums,
    place,
    held,
    factors,
    policy,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Coefficients [1, WIDTH] of one row; (1, 0, ...) for a row that the edit does not select."""
    k = tl.arange(0, WIDTH)[None, :]
    if policy.coefficients is not None:
        result = tl.load(policy.coefficients + at * K + k, mask=k < K, other=0.0)
    else:
        records = sums + place[:, :, None] + SUMS + k[:, None, :]
        parts = tl.load(records, mask=held[:, :, None] & (k < K)[:, None, :], other=0.0)
        masses = tl.sum(factors[:, :, None] * parts, 1)
        heads = head + tl.zeros([1, 1], tl.int64)
        result = POLICY(masses, heads, heads >= 0, policy.numbers, WIDTH)
    if policy.selected.tensor is not None:
        chosen = policy.selected.tensor + row
        if policy.selected.batch is not None:
            chosen += batch * policy.selected.batch
        result = tl.where(tl.load(chosen) != 0, result, (k == 0).to(tl.float32))
    return result


@triton.jit
def merge_output(
    at,
    batch,
    head,
    row,
    out,
    sums,
    outputs,
    sinks,
    policy,
    head_gain,
    splits,
    S: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    DV: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    POLICY: tl.constexpr,
):
    """A block of columns of one row's output: splits joined, channels weighted, head scaled."""
    one = at + tl.zeros([1], tl.int64)
    place, held, factors, _, shift, whole, _ = merge_splits(
        sums, one, one >= 0, head, sinks, splits, SUMS + K, S
    )
    inverse = tl.where(whole > 0, 1.0 / whole, 0.0)
    weights = tl.full([1, WIDTH], 1.0, tl.float32)
    if K > 0:
        weights = decode_coefficients(
            at, batch, head, row, sums, place, held, factors, policy, K, WIDTH, POLICY
        )
    channels: tl.constexpr = K if K > 0 else 1
    k = tl.arange(0, WIDTH)[None, :, None]
    dv = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = dv[None, None, :]
    result = tl.zeros([BLOCK], tl.float32)
    for start in range(0, splits, STEP):
        split = start + tl.arange(0, STEP)
        record = at * splits + split
        top = tl.load(sums + record * (SUMS + K), mask=split < splits, other=float("-inf"))
        factor = tl.exp2((top - shift) * LOG2E) * inverse
        part = outputs + (record[:, None, None] * channels + k) * DV + columns
        kept = (split < splits)[:, None, None] & (k < channels) & (columns < DV)
        part = tl.load(part, mask=kept, other=0.0)
        result += tl.sum(tl.sum(part * factor[:, None, None] * weights[:, :, None], 1), 0)
    if head_gain is not None:
        gain = head_gain.tensor + batch * head_gain.batch + head * head_gain.head + row * head_gain.row
        result *= tl.load(gain).to(tl.float32)
    to = out.tensor + batch * out.batch + head * out.head + row * out.row + dv
    tl.store(to, narrow(result, out.tensor.dtype.element_ty), mask=dv < DV)


@triton.jit
def merge_record(
    at,
    head,
    to,
    active,
    measured,
    sinks,
    record,
    splits,
    S: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
):
    """Statistics of row `at`, stored at place `to`; a row that is not `active` reports 0."""
    one = at + tl.zeros([1], tl.int64)
    to = to + tl.zeros([1], tl.int64)
    place, held, factors, best, shift, whole, seen = merge_splits(
        measured, one, one >= 0, head, sinks, splits, MEASURED + K, S
    )
    inverse = tl.where(whole > 0, 1.0 / whole, 0.0)
    spread = tl.log2(tl.maximum(whole, TINY)) * LN2  # log-sum-exp - shift
    counts = active & (seen > 0)
    tops = tl.load(measured + place, mask=held, other=float("-inf"))
    if record.shift is not None:
        tl.store(record.shift + to, shift)
        tl.store(record.total + to, whole)
    if record.lse is not None:
        lse = tl.where(whole > 0, shift + spread, float("-inf"))
        tl.store(record.lse + to, tl.where(active, lse, 0.0))
    if record.entropy is not None:  # sum_j a_j (lse - s_j); a split knows the sum of s_j - top
        totals = tl.load(measured + place + 1, mask=held, other=0.0)
        below = tl.load(measured + place + 2, mask=held, other=0.0)
        below += tl.where(totals > 0, (tops - shift[:, None]) * totals, 0.0)
        entropy = spread * seen * inverse - tl.sum(factors * below, 1)
        tl.store(record.entropy + to, tl.where(counts, entropy, 0.0))
    if record.top_weight is not None:
        strongest = tl.argmax(tops, 1, tie_break_left=True)
        column = tl.load(measured + (at * splits + strongest) * (MEASURED + K) + 3).to(tl.int64)
        weight = tl.exp2((best - shift) * LOG2E) * inverse
        tl.store(record.top_weight + to, tl.where(counts, weight, 0.0))
        tl.store(record.top_column + to, tl.where(counts, column, 0))
    if K > 0:
        k = tl.arange(0, WIDTH)
        masses = tl.zeros([WIDTH], tl.float32)
        for start in range(0, splits, STEP):
            split = start + tl.arange(0, STEP)
            parts = measured + (at * splits + split) * (MEASURED + K)
            top = tl.load(parts, mask=split < splits, other=float("-inf"))
            kept = (split < splits)[:, None] & (k < K)[None, :]
            part = tl.load(parts[:, None] + MEASURED + k[None, :], mask=kept, other=0.0)
            masses += tl.sum(part * (tl.exp2((top - shift) * LOG2E) * inverse)[:, None], 0)
        tl.store(record.masses + to * K + k, tl.where(counts, masses, 0.0), mask=k < K)


@triton.jit
def merge_kernel(
    out,
    sums,
    outputs,
    measured,
    sinks,
    policy,
    head_gain,
    record,
    index,
    active,
    output_rows,
    heads,
    queries,
    recorded,
    splits,
    S: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    DV: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    RK: tl.constexpr,
    RWIDTH: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Outputs of `output_rows` = B Hq Lq rows, a block of columns in a program; then B Hq R records."""
    program = tl.program_id(0).to(tl.int64)
    if program < output_rows:
        if out is not None:
            row, pair = program % queries, program // queries
            batch, head = pair // heads, pair % heads
            merge_output(
                program, batch, head, row, out, sums, outputs, sinks, policy, head_gain, splits,
                S, K, WIDTH, DV, BLOCK, STEP, POLICY,
            )  # fmt: skip
    elif tl.program_id(1) == 0:  # noqa: SIM102 (Triton decides what is None one `if` at a time)
        if measured is not None:
            to = program - output_rows
            row, pair = to % recorded, to // recorded
            counts = to >= 0
            if active is not None:
                counts = tl.load(active + (pair // heads) * recorded + row) != 0
            if index is not None:
                row = tl.load(index + row)
            at = pair * queries + row
            merge_record(at, pair % heads, to, counts, measured, sinks, record, splits, S, RK, RWIDTH, STEP)


# --- the host's side


@operator("decode_merge")
def decode_merge(
    q: Tensor,
    sums: Tensor | None,
    outputs: Tensor | None,
    measured: Tensor | None,
    sinks: Tensor | None,
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
    """The output [B, Hq, Lq, Dv] of what `decode_split` summed up, then the statistics: see `record_names`.

    `q` gives shape and type. The coefficients of the policy's channels are given, or `function` names its
    device function and `numbers` are what that reads. `selected` [B or 1, Lq] are the rows that the edit
    changes; `index` [R] (None: all) and `active` [B, R] are the rows on record.
    """
    names = record_names(measured, entropy, top1, lse, softmax)
    room = _room(q, outputs, measured, index, names)
    out = None if outputs is None else room[0]
    batch, heads, queries, _ = q.shape
    rows = 0 if out is None else batch * heads * queries
    recorded = queries if index is None else index.shape[0]
    records = 0 if measured is None else batch * heads * recorded
    splits = (measured if sums is None else sums).shape[1]  # type: ignore[union-attr]
    channels = 0 if sums is None else sums.shape[2] - SUMS.value
    on_record = 0 if measured is None else measured.shape[2] - MEASURED.value
    values = 1 if out is None else out.shape[3]
    block = min(BLOCK_V, power_of_two(values))
    if rows + records == 0:
        return room
    merge_kernel[(rows + records, -(-values // block))](
        None if out is None else MatrixArg(out, out.stride(0), out.stride(1), out.stride(2)),
        sums,
        outputs,
        measured,
        sinks,
        PolicyArg(
            numbers_on(numbers, q.device) if function else None,
            coefficients,
            column_arg(None if selected is None else selected[:, None]),
        ),
        None if head_gain is None else _gain_arg(head_gain),
        RecordArg(**dict(zip(names, room[len(room) - len(names) :], strict=True))),
        index,
        active,
        rows,
        heads,
        queries,
        recorded,
        splits,
        S=power_of_two(splits),
        K=channels,
        WIDTH=power_of_two(max(1, channels)),
        DV=values,
        BLOCK=block,
        STEP=STEP,
        RK=on_record,
        RWIDTH=power_of_two(max(1, on_record)),
        POLICY=device_function(function) if function else None,
        num_warps=4,
        **FUSED,
    )
    return room


@decode_merge.register_fake
def _(
    q: Tensor,
    sums: Tensor | None,
    outputs: Tensor | None,
    measured: Tensor | None,
    sinks: Tensor | None,
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
    return _room(q, outputs, measured, index, record_names(measured, entropy, top1, lse, softmax))


def record_names(measured: Tensor | None, entropy: bool, top1: bool, lse: bool, softmax: bool) -> list[str]:
    """Which statistics `decode_merge` returns, in the order of `RecordArg`."""
    if measured is None:
        return []
    masses = measured.shape[2] > MEASURED.value
    wanted = (masses, entropy, top1, top1, lse, softmax, softmax)
    return [name for name, is_wanted in zip(RecordArg._fields, wanted, strict=True) if is_wanted]


def _room(
    q: Tensor, outputs: Tensor | None, measured: Tensor | None, index: Tensor | None, names: list[str]
) -> list[Tensor]:
    """Where the output goes, in the memory order [B, Lq, Hq, Dv] of the next layer, and the statistics."""
    batch, heads, queries, _ = q.shape
    room = []
    if outputs is not None:
        room.append(q.new_empty(batch, queries, heads, outputs.shape[3]).transpose(1, 2))
    rows = (batch, heads, queries if index is None else index.shape[0])
    for name in names:
        shape = (
            (*rows, measured.shape[2] - MEASURED.value) if name == "masses" and measured is not None else rows
        )
        room.append(q.new_empty(shape, dtype=torch.int64 if name == "top_column" else torch.float32))
    return room


def _gain_arg(gain: Tensor) -> MatrixArg:
    """A head gain [B or 1, Hq] or [B or 1, Hq, Lq]."""
    steps = [gain.stride(d) if d < gain.dim() and gain.shape[d] > 1 else 0 for d in range(3)]
    return MatrixArg(gain, *steps)


def merge_masses(sums: Tensor, sinks: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Masses [B, Hq, Lq, K] of `sums` [B Hq Lq, S, 2 + K] in torch: for policies without a Triton part."""
    tops, totals, masses = sums[..., 0], sums[..., 1], sums[..., SUMS.value :]
    top = tops.amax(1, keepdim=True)
    sink = None
    if sinks is not None:
        sink = sinks.float()[:, None].expand(*shape).reshape(-1, 1)
        top = torch.maximum(top, sink)
    top = top.masked_fill(top == -torch.inf, 0.0)
    factors = torch.exp(tops - top)
    whole = (factors * totals).sum(1)
    if sink is not None:
        whole = whole + torch.exp(sink - top)[:, 0]
    joined = (factors[..., None] * masses).sum(1) / whole.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return joined.view(*shape, -1)
