"""What the decode and prefill kernels share: device functions on one tile of query rows x keys.

A tile has M query rows and N keys. Its rows may belong to several heads (decode packs a query group into M)
or to one. Scores are fp32 in natural units, since soft cap, slope and gain act on those; exponentials are
taken in base 2, exp(x) = exp2(x * LOG2E), which is the instruction the hardware has. Per tile:

    scores -> + mask -> edit_scores -> hide -> softmax_step -> (weights x channels) @ V

Tensors travel with their strides as named tuples, which Triton flattens. A tuple is always there; of what a
call lacks the tensor is None, as is the stride of a dimension that is shared, and Triton compiles the code
for it away. `batch` is a scalar (int64), `heads` and `rows` are [M, 1], or scalars where all rows of a tile
agree.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from regaze.kernels import policies

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
TINY = tl.constexpr(1.1754943508222875e-38)  # 2 ** -126; a smaller constant would make an expression fp64
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

#: As `regaze.kernels.policies.MAX_CHANNELS`, for device functions.
MAX_CHANNELS = tl.constexpr(policies.MAX_CHANNELS)


class ColumnArg(NamedTuple):
    """A column tensor [B or 1, Hq or 1, n] with unit stride along its columns; neutral beyond column n."""

    tensor: Any = None
    batch: int | None = None
    head: int | None = None
    n: int | None = None


class EditArg(NamedTuple):
    """The parts of an edit that are columns, and its [B or 1, Hq, 1] factor of a head's scores."""

    slope: ColumnArg
    gain: ColumnArg
    head_gain: ColumnArg
    bias: ColumnArg
    value_gain: ColumnArg


class ChannelArg(NamedTuple):
    """G groups ([B or 1, n] uint8 or None), then weights ([C, B or 1, n] or None), unit stride along n."""

    groups: Any = None
    groups_batch: int | None = None
    weights: Any = None
    weights_batch: int | None = None
    weights_step: int | None = None
    n: int | None = None


class MaskArg(NamedTuple):
    """A bool mask, or an additive one that hides keys at or below `floor`: [B or 1, Hq or 1, Lq, Lk]."""

    tensor: Any = None
    batch: int | None = None
    head: int | None = None
    row: int | None = None
    column: int | None = None
    floor: float | None = None


class OpeningArg(NamedTuple):
    """Openings as bits: rows [B or 1, Lq] and columns [B or 1, n] int64; a row and a column meet in a bit."""

    rows: Any = None
    rows_batch: int | None = None
    columns: Any = None
    columns_batch: int | None = None
    n: int | None = None


class WindowArg(NamedTuple):
    """Sliding windows: how many keys each head looks back, [B or 1, Hq] int64; keys before `early` ([B]
    int64) stay visible.
    """

    span: Any = None
    batch: int | None = None
    early: Any = None


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a @ b in fp32; PRECISION says how fp32 factors are multiplied, narrower ones are multiplied exactly."""
    if INTERPRETED:  # the interpreter would multiply the bit patterns of bf16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """fp32 x in `dtype`, rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter would cut off the low bits
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def tanh(x):
    """tanh to a few ulp: a series where 1 - exp(-2|x|) would cancel."""
    decay = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    far = (1.0 - decay) / (1.0 + decay)
    square = x * x
    series = -0.05396825397 + square * 0.02186948854
    series = 0.13333333333 + square * series
    series = -0.33333333333 + square * series
    return tl.where(square < 0.04, x + x * square * series, tl.where(x < 0, -far, far))


@triton.jit
def tile_scores(q, k, scaling, softcap, PRECISION: tl.constexpr):
    """Scores [M, N] of q [M, D] and k [D, N], scaled and, unless `softcap` is None, capped."""
    scores = dot(q, k, PRECISION) * scaling
    if softcap is not None:
        scores = softcap * tanh(scores / softcap)
    return scores


@triton.jit
def opened_rows(unmask, batch, rows):
    """The bits of rows [M] in `unmask`, [M] int64; 0 without unmask."""
    if unmask.rows is not None:
        at = unmask.rows + rows
        if unmask.rows_batch is not None:
            at += batch * unmask.rows_batch
        return tl.load(at)
    else:
        return rows.to(tl.int64) * 0


@triton.jit
def shown(inside, batch, heads, rows, columns, mask, last):
    """Which keys the mask shows the rows, [M, N] bool, and what it adds to their scores, [M or 1, N or 1].

    Args:
        inside: [M, N] bool, positions that exist; nothing else is read or seen.
        columns: [N] key numbers.
        last: [M, 1] last visible key of a causal row, for a call without a mask; or None.
    """
    added = tl.zeros([1, 1], tl.float32)
    visible = inside
    if mask.tensor is not None:
        at = mask.tensor + rows * mask.row + columns[None, :] * mask.column
        if mask.batch is not None:
            at += batch * mask.batch
        if mask.head is not None:
            at += heads * mask.head
        if mask.tensor.dtype.element_ty.is_floating():
            value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            visible = inside & (value > mask.floor)
            added = tl.where(visible, value, 0.0)
        else:
            visible = inside & (tl.load(at, mask=inside, other=0) != 0)
    elif last is not None:
        visible = inside & (columns[None, :] <= last)
    return visible, added


@triton.jit
def look(inside, batch, heads, rows, columns, mask, unmask, row_bits, last):
    """As `shown`, with the keys that `unmask` open to rows of these bits [M], see `opened_rows`."""
    visible, added = shown(inside, batch, heads, rows, columns, mask, last)
    if unmask.rows is not None:
        at = unmask.columns + columns
        if unmask.columns_batch is not None:
            at += batch * unmask.columns_batch
        column_bits = tl.load(at, mask=columns < unmask.n, other=0)
        visible = visible | (inside & ((row_bits[:, None] & column_bits[None, :]) != 0))
    return visible, added


@triton.jit
def in_window(windows, batch, heads, own, columns):
    """Keys in the window of a row, or among the first ones, [1 or M, N] bool.

    `own` (scalar or [M, 1]) is the key of the row itself: the last that the mask shows it.
    """
    at = windows.span + heads
    if windows.batch is not None:
        at += batch * windows.batch
    keys = columns[None, :]
    return (own - keys < tl.load(at)) | (keys < tl.load(windows.early + batch))


@triton.jit
def column_tile(arg, batch, heads, columns, neutral):
    """[1 or M, N] fp32: columns [N] of a `ColumnArg` for the heads of the rows."""
    at = arg.tensor + columns[None, :]
    if arg.batch is not None:
        at += batch * arg.batch
    if arg.head is not None:
        at += heads * arg.head
    return tl.load(at, mask=columns[None, :] < arg.n, other=neutral).to(tl.float32)


@triton.jit
def edit_scores(scores, edit, chosen, batch, heads, columns):
    """Score map and column bias on finite scores [M, N]; rows outside `chosen` ([M, 1] bool) keep theirs."""
    edited = scores
    if edit.slope.tensor is not None:
        edited += column_tile(edit.slope, batch, heads, columns, 0.0) * tl.abs(edited)
    if edit.gain.tensor is not None:
        edited *= column_tile(edit.gain, batch, heads, columns, 1.0)
    if edit.head_gain.tensor is not None:
        edited *= column_tile(edit.head_gain, batch, heads, columns * 0, 1.0)
    if edit.bias.tensor is not None:
        edited += column_tile(edit.bias, batch, heads, columns, 0.0)
    return tl.where(chosen, edited, scores)


@triton.jit
def softmax_step(scores, top, total):
    """Online softmax: weights exp(s - new top) [M, N], factor of earlier sums [M], new top and total [M].

    Hidden scores are -inf; a row that has seen none but those keeps top -inf and total 0.
    """
    new = tl.maximum(top, tl.max(scores, 1))
    shift = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp2((scores - shift[:, None]) * LOG2E)
    rescale = tl.exp2((top - shift) * LOG2E)
    return weights, rescale, new, total * rescale + tl.sum(weights, 1)


@triton.jit
def channel_tile(arg, batch, columns, WIDTH: tl.constexpr, G: tl.constexpr, K: tl.constexpr):
    """u_k[j] of K channels, G of them groups, [WIDTH, N] fp32, 0 beyond K. Keys beyond n are in group 0."""
    k = tl.arange(0, WIDTH)[:, None]
    named = columns < arg.n
    u = tl.zeros([WIDTH, columns.shape[0]], tl.float32)
    if G > 0:
        at = arg.groups + columns
        if arg.groups_batch is not None:
            at += batch * arg.groups_batch
        group = tl.load(at, mask=named, other=0).to(tl.int32)
        u = ((k == group[None, :]) & (k < G)).to(tl.float32)
    if K > G:
        at = arg.weights + (k - G) * arg.weights_step + columns[None, :]
        if arg.weights_batch is not None:
            at += batch * arg.weights_batch
        free = (k >= G) & (k < K) & named[None, :]
        u += tl.load(at, mask=free, other=0.0).to(tl.float32)
    return u
