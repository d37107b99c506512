"""Kernel arguments: the tensors of a call and of its edit with their strides, as named tuples.

Triton flattens a named tuple into arguments of the kernel. A tuple is always there. Where a call lacks a
part, its pointer is None, as is the stride of a dimension that is shared (of size 1, or expanded), and Triton
compiles the code for it away. `stride_b`, `stride_h`, `stride_m` and `stride_n` are steps along samples,
heads, query rows and keys; a last dimension that is read as a vector has stride 1.

Triton compiles a kernel anew for a number in a tuple that is 1 or that 16 divides (`do_not_specialize` does
not reach into tuples). Numbers that change from prompt to prompt, all but the strides of matrices, are
therefore passed as odd numbers above 1, by `varying`; `varied` (common.py) gives them back. Strides of
matrices tell Triton which loads it may join, and 16 divides them wherever it divides the head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regaze.kernels.spec import RowSelection, UnmaskRect


def varying(size: int) -> int:
    """A size or stride of at least 0 as an odd number above 1; see the top of this file."""
    return 2 * size + 3


class MatrixArg(NamedTuple):
    """Queries, keys, values or an output, [B, H, L, D] with unit stride along D."""

    ptr: Any
    stride_b: int
    stride_h: int
    stride_l: int


class PagesArg(NamedTuple):
    """Which pages of a cache hold the keys of each sample, [B, n], and how many keys it has, [B]."""

    table_ptr: Any = None
    stride_b: int | None = None
    lengths_ptr: Any = None


class ColumnArg(NamedTuple):
    """A column tensor [B or 1, Hq or 1, n] with unit stride along its columns; neutral beyond column n."""

    ptr: Any = None
    stride_b: int | None = None
    stride_h: int | None = None
    num_columns: int | None = None


class EditArg(NamedTuple):
    """The parts of an edit that are columns; `head_score_gain` [B or 1, Hq, 1] has one column."""

    score_slope: ColumnArg
    score_gain: ColumnArg
    head_score_gain: ColumnArg
    bias: ColumnArg
    value_gain: ColumnArg


class ChannelArg(NamedTuple):
    """Groups [B or 1, n] uint8 and free weights [C, B or 1, n], unit stride along n."""

    groups_ptr: Any = None
    stride_gb: int | None = None
    weights_ptr: Any = None
    stride_wb: int | None = None
    stride_wc: int | None = None
    num_columns: int | None = None


class MaskArg(NamedTuple):
    """A bool mask, or an additive one that hides keys at or below `floor`: [B or 1, Hq or 1, Lq, Lk].

    `stride_n` is None for the usual 1, `is_wide` unless 32 bits are too few for places in a sample.
    """

    ptr: Any = None
    stride_b: int | None = None
    stride_h: int | None = None
    stride_m: int | None = None
    stride_n: int | None = None
    floor: float | None = None
    is_wide: int | None = None


class UnmaskArg(NamedTuple):
    """Unmasked rectangles as bits of rows [B or 1, Lq] and columns [B or 1, n], int64.

    A row may see a column that shares a bit with it.
    """

    row_bits_ptr: Any = None
    stride_rb: int | None = None
    column_bits_ptr: Any = None
    stride_cb: int | None = None
    num_columns: int | None = None


class WindowArg(NamedTuple):
    """Sliding windows: how many keys each head looks back, [B or 1, Hq] int64.

    Keys before `sink_end` ([B] int64) stay visible.
    """

    span_ptr: Any = None
    stride_b: int | None = None
    sink_end_ptr: Any = None


class PerRowArg(NamedTuple):
    """A number for each row of each head: [B or 1, Hq or 1] or [B or 1, Hq or 1, Lq].

    Strides of shared dimensions are 0.
    """

    ptr: Any
    stride_b: int
    stride_h: int
    stride_l: int


class SinkArg(NamedTuple):
    """Sink logits: those of the model, [Hq], and those of an edit; None where there are none."""

    heads_ptr: Any
    rows: PerRowArg | None


class OwnKeyArg(NamedTuple):
    """The key of each row itself, [B or 1, Hq or 1, Lq] int32."""

    ptr: Any
    stride_b: int
    stride_h: int


def matrix_arg(matrix: Tensor) -> MatrixArg:
    """[B, H, L, D]; copied if D has another stride than 1."""
    matrix = _unit_stride(matrix)
    return MatrixArg(matrix, matrix.stride(0), matrix.stride(1), matrix.stride(2))


def pages_arg(table: Tensor | None, lengths: Tensor | None) -> PagesArg:
    """A block table [B, n] and the lengths [B] of its sequences."""
    if table is None or lengths is None:
        return PagesArg()
    table, lengths = _unit_stride(table), _unit_stride(lengths)
    return PagesArg(table, varying(table.stride(0)), lengths)


def column_arg(column: Tensor | None) -> ColumnArg:
    """A column tensor [B or 1, Hq or 1, n]."""
    if column is None:
        return ColumnArg()
    column = _unit_stride(column)
    return ColumnArg(column, _stride(column, 0), _stride(column, 1), varying(column.shape[2]))


def channel_arg(groups: Tensor | None, weights: Tensor | None) -> ChannelArg:
    """Groups [B or 1, n] uint8 and free weights [C, B or 1, n]."""
    arg = ChannelArg()
    if groups is not None:
        groups = _unit_stride(groups)
        columns = varying(groups.shape[1])
        arg = arg._replace(groups_ptr=groups, stride_gb=_stride(groups, 0), num_columns=columns)
    if weights is not None:
        weights = _unit_stride(weights)
        strides = {"stride_wb": _stride(weights, 1), "stride_wc": varying(weights.stride(0))}
        arg = arg._replace(weights_ptr=weights, num_columns=varying(weights.shape[2]), **strides)
    return arg


def num_channels(groups: Tensor | None, weights: Tensor | None, num_groups: int) -> int:
    """Number of channels: groups, then free weights."""
    return (0 if groups is None else num_groups) + (0 if weights is None else weights.shape[0])


def mask_arg(mask: Tensor | None) -> MaskArg:
    """A mask [B or 1, Hq or 1, Lq, Lk] of any strides, of expanded dimensions too."""
    if mask is None:
        return MaskArg()
    if mask.dtype == torch.float64:  # what hides a key is lost in fp32, unless it becomes fp32's own minimum
        mask = mask.clamp_min(torch.finfo(torch.float32).min).float()
    shape, (b, h, m, n) = mask.shape, mask.stride()
    return MaskArg(
        mask,
        varying(b) if b and shape[0] > 1 else None,
        varying(h) if h and shape[1] > 1 else None,
        varying(m),
        None if n == 1 else varying(n),
        _FLOORS[mask.dtype],
        1 if shape[2] * m + shape[3] * n >> 31 else None,
    )


#: Half the minimum of a dtype: an additive mask hides keys at or below it.
_FLOORS = {torch.bool: 0.0} | {
    dtype: torch.finfo(dtype).min / 2 for dtype in (torch.float16, torch.bfloat16, torch.float32)
}


def unmask_arg(row_bits: Tensor | None, column_bits: Tensor | None) -> UnmaskArg:
    """The result of `unmask_bits`."""
    if row_bits is None or column_bits is None:
        return UnmaskArg()
    strides = _stride(row_bits, 0), _stride(column_bits, 0)
    return UnmaskArg(row_bits, strides[0], column_bits, strides[1], varying(column_bits.shape[1]))


def unmask_bits(unmask: Sequence[UnmaskRect]) -> tuple[Tensor | None, Tensor | None]:
    """Rows [B or 1, Lq] and columns [B or 1, n] of up to 63 rectangles as int64, one bit for each."""
    if not unmask:
        return None, None
    return _bits([rect.rows for rect in unmask]), _bits([rect.columns for rect in unmask])


def _bits(flags: Sequence[Tensor]) -> Tensor:
    """Bool tensors [B or 1, n_i] as bits of one [B or 1, max n_i] int64 tensor."""
    shape = max(f.shape[0] for f in flags), max(f.shape[1] for f in flags)
    bits = torch.zeros(shape, dtype=torch.int64, device=flags[0].device)
    for i, flag in enumerate(flags):
        bits[:, : flag.shape[1]] |= flag.long() << i
    return bits


def window_arg(span: Tensor | None, sink_end: Tensor | None) -> WindowArg:
    """Spans [B or 1, Hq] int64 and the end of the first keys [B] int64."""
    return WindowArg() if span is None else WindowArg(span, _stride(span, 0), sink_end)


def own_key_arg(own_key: Tensor | None) -> OwnKeyArg | None:
    """The key of each row itself, [B or 1, Hq or 1, Lq] int32."""
    if own_key is None:
        return None
    steps = (own_key.stride(d) if own_key.shape[d] > 1 else 0 for d in range(2))
    return OwnKeyArg(own_key, *map(varying, steps))


def selected_rows(rows: RowSelection | None, queries: int) -> Tensor | None:
    """A selection of query rows as [B or 1, Lq] bool, None for all rows."""
    if rows is None or (rows.active is None and len(rows.index) == queries):
        return None
    if rows.active is not None and len(rows.index) == queries:
        return rows.active
    batch = 1 if rows.active is None else rows.active.shape[0]
    selected = torch.zeros(batch, queries, dtype=torch.bool, device=rows.index.device)
    active = selected.new_ones(1, len(rows.index)) if rows.active is None else rows.active
    return selected.index_copy_(1, rows.index, active)


def per_row_arg(numbers: Tensor | None) -> PerRowArg | None:
    """A head gain or a sink: [B or 1, Hq or 1] or [B or 1, Hq or 1, Lq]."""
    if numbers is None:
        return None
    steps = (numbers.stride(d) if d < numbers.dim() and numbers.shape[d] > 1 else 0 for d in range(3))
    return PerRowArg(numbers, *map(varying, steps))


def sink_arg(sinks: Tensor | None, sink: Tensor | None) -> SinkArg | None:
    """The model's sinks [Hq] and those of an edit, [B or 1, Hq or 1, Lq]."""
    return None if sinks is None and sink is None else SinkArg(sinks, per_row_arg(sink))


def _stride(tensor: Tensor, dim: int) -> int | None:
    """Stride of a dimension that may have size 1 or be expanded: None if so."""
    step = tensor.stride(dim) if tensor.shape[dim] > 1 else 0
    return varying(step) if step else None


def _unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy of it, with stride 1 along the last dimension."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
