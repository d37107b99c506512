"""Device functions that the decode and prefill kernels share: one tile of query rows x keys.

A tile has BLOCK_M query rows and BLOCK_N keys. Its rows may belong to several heads (decode packs a query
group into them) or to one. Scores are fp32 in natural units, since soft cap, slope and gain act on those;
exponentials are taken in base 2, exp(x) = exp2(x * LOG2E), which is the instruction the hardware has. Per
tile:

    scores -> + mask -> edit_scores -> hide -> softmax_step -> (weights x channels) @ V

`batch` is a scalar (int64), `heads` and `rows` are [M, 1], or scalars where all rows of a tile agree;
`columns` [N] are key numbers. See arguments.py for the named tuples that carry pointers and strides.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from regaze.kernels import policies

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
TINY = tl.constexpr(1.1754943508222875e-38)  # 2 ** -126; a smaller constant would make an expression fp64
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

#: As `regaze.kernels.policies.MAX_CHANNELS`, for device functions.
MAX_CHANNELS = tl.constexpr(policies.MAX_CHANNELS)


@triton.jit
def varied(number):
    """The size that `arguments.varying` passed as this odd number."""
    return (number - 3) >> 1


@triton.jit
def per_row_place(numbers, batch, heads, rows):
    """Pointers to the numbers of a `PerRowArg` for these rows of heads."""
    ptr = numbers.ptr + batch * varied(numbers.stride_b) + heads * varied(numbers.stride_h)
    return ptr + rows * varied(numbers.stride_l)


@triton.jit
def load_sinks(sinks, batch, heads, rows):
    """Sink logits of rows of heads in fp32: the model's, those of an edit, or both as one."""
    if sinks.rows is not None:
        logits = tl.load(per_row_place(sinks.rows, batch, heads, rows)).to(tl.float32)
        if sinks.heads_ptr is not None:
            own = tl.load(sinks.heads_ptr + heads).to(tl.float32)
            top, low = tl.maximum(logits, own), tl.minimum(logits, own)
            below = tl.where(low == float("-inf"), low, low - top)  # -inf - -inf would be NaN
            logits = top + tl.log2(1.0 + tl.exp2(below * LOG2E)) * LN2
    else:
        logits = tl.load(sinks.heads_ptr + heads).to(tl.float32)
    return logits


@triton.jit
def dot(a, b, INPUT_PRECISION: tl.constexpr):
    """a @ b in fp32. INPUT_PRECISION is for fp32 factors, narrower ones are multiplied exactly."""
    if INTERPRETED:  # the interpreter would multiply the bit patterns of bf16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=INPUT_PRECISION)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """fp32 x in `dtype`, rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter would cut off the low bits
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def weighted_values(weights, value, REWEIGHTED: tl.constexpr, INPUT_PRECISION: tl.constexpr):
    """fp32 weights [M, N] @ value [N, D] in fp32, with the weights rounded to the dtype of the values.

    REWEIGHTED: factors of an edit may have raised weights above 1. In fp16, whose range they may leave, each
    row is then divided by its largest.
    """
    if REWEIGHTED:
        if value.dtype == tl.float16:
            top = tl.maximum(tl.max(tl.abs(weights), 1), 1.0)[:, None]
            return dot(round_to(weights / top, value.dtype), value, INPUT_PRECISION) * top
        else:
            return dot(round_to(weights, value.dtype), value, INPUT_PRECISION)
    else:
        return dot(round_to(weights, value.dtype), value, INPUT_PRECISION)


@triton.jit
def tanh(x):
    """tanh to a few ulp."""
    decay = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))  # exp(-2 |x|), which cannot overflow
    far = (1.0 - decay) / (1.0 + decay)
    # Near 0 the difference 1 - exp(-2 |x|) cancels: the Taylor series to x^9 instead.
    square = x * x
    series = -0.05396825397 + square * 0.02186948854
    series = 0.13333333333 + square * series
    series = -0.33333333333 + square * series
    return tl.where(square < 0.04, x + x * square * series, tl.where(x < 0, -far, far))


@triton.jit
def tile_scores(query, key, scaling, softcap, INPUT_PRECISION: tl.constexpr):
    """Scores [M, N] of query [M, D] and key [D, N], scaled and, unless `softcap` is None, capped."""
    scores = dot(query, key, INPUT_PRECISION) * scaling
    if softcap is not None:
        scores = softcap * tanh(scores / softcap)
    return scores


@triton.jit
def unmask_row_bits(unmask, batch, rows):
    """Which rectangles of `unmask` the rows [M] are in, as bits, [M] int64; 0 without unmask."""
    if unmask.row_bits_ptr is not None:
        bits_ptrs = unmask.row_bits_ptr + rows
        if unmask.stride_rb is not None:
            bits_ptrs += batch * varied(unmask.stride_rb)
        return tl.load(bits_ptrs)
    else:
        return rows.to(tl.int64) * 0


@triton.jit
def mask_tile(inside, has_holes, batch, heads, rows, columns, mask, last_key):
    """Which keys the mask shows the rows, [M, N] bool, and what it adds to their scores, [M or 1, N or 1].

    Args:
        inside: [M, N] bool, positions that exist; nothing else is read or visible.
        has_holes: scalar or [M, 1] bool, rows whose mask has to be read; to others it shows all, and adds
            nothing. None: all rows.
        last_key: [M, 1] last visible key of a causal row, for a call without a mask; or None.
    """
    added = tl.zeros([1, 1], tl.float32)
    visible = inside
    if mask.ptr is not None:
        is_read = inside if has_holes is None else inside & has_holes
        base = mask.ptr
        if mask.is_wide is not None:
            rows = rows.to(tl.int64)
        if mask.stride_b is not None:
            base += batch * varied(mask.stride_b)
        if mask.stride_h is not None:
            base += heads * varied(mask.stride_h)
        if mask.stride_n is None:
            mask_ptrs = base + (rows * varied(mask.stride_m) + columns[None, :])
        else:
            mask_ptrs = base + (rows * varied(mask.stride_m) + columns[None, :] * varied(mask.stride_n))
        if mask.ptr.dtype.element_ty.is_floating():
            values = tl.load(mask_ptrs, mask=is_read, other=0.0).to(tl.float32)
            visible = inside & (values > mask.floor)
            added = tl.where(visible, values, 0.0)
        else:
            visible = inside & (tl.load(mask_ptrs, mask=is_read, other=1) != 0)
    elif last_key is not None:
        visible = inside & (columns[None, :] <= last_key)
    return visible, added


@triton.jit
def visible_tile(inside, has_holes, batch, heads, rows, columns, mask, unmask, row_bits, last_key):
    """As `mask_tile`, with the keys that `unmask` opens to rows of these bits; see `unmask_row_bits`."""
    visible, added = mask_tile(inside, has_holes, batch, heads, rows, columns, mask, last_key)
    if unmask.row_bits_ptr is not None:
        bits_ptrs = unmask.column_bits_ptr + columns
        if unmask.stride_cb is not None:
            bits_ptrs += batch * varied(unmask.stride_cb)
        column_bits = tl.load(bits_ptrs, mask=columns < varied(unmask.num_columns), other=0)
        # A row and a column that share a bit are in one rectangle.
        visible = visible | (inside & ((row_bits[:, None] & column_bits[None, :]) != 0))
    return visible, added


@triton.jit
def window_tile(windows, batch, heads, own_key, columns):
    """Keys in the window of a row, or among the first ones, [1 or M, N] bool.

    `own_key` (scalar or [M, 1]) is the key of the row itself: the last that the mask shows it.
    """
    span_ptrs = windows.span_ptr + heads
    if windows.stride_b is not None:
        span_ptrs += batch * varied(windows.stride_b)
    columns = columns[None, :]
    recent = own_key - columns < tl.load(span_ptrs)
    return recent | (columns < tl.load(windows.sink_end_ptr + batch))


@triton.jit
def column_tile(column, batch, heads, columns, neutral):
    """[1 or M, N] fp32: columns [N] of a `ColumnArg` for the heads of the rows; `neutral` beyond its end."""
    ptrs = column.ptr + columns[None, :]
    if column.stride_b is not None:
        ptrs += batch * varied(column.stride_b)
    if column.stride_h is not None:
        ptrs += heads * varied(column.stride_h)
    return tl.load(ptrs, mask=columns[None, :] < varied(column.num_columns), other=neutral).to(tl.float32)


@triton.jit
def edit_scores(scores, edit, selected, batch, heads, columns):
    """Score map and column bias on finite scores [M, N], in the rows that are `selected` ([M, 1] bool)."""
    edited = scores
    if edit.score_slope.ptr is not None:
        edited += column_tile(edit.score_slope, batch, heads, columns, 0.0) * tl.abs(edited)
    if edit.score_gain.ptr is not None:
        edited *= column_tile(edit.score_gain, batch, heads, columns, 1.0)
    if edit.head_score_gain.ptr is not None:  # one factor for all keys: its only column
        edited *= column_tile(edit.head_score_gain, batch, heads, columns * 0, 1.0)
    if edit.bias.ptr is not None:
        edited += column_tile(edit.bias, batch, heads, columns, 0.0)
    return tl.where(selected, edited, scores)


@triton.jit
def softmax_step(scores, running_max, running_sum):
    """One step of online softmax over scores [M, N].

    Returns weights exp(s - new max) [M, N], the factor [M] that brings earlier sums to the new maximum, and
    the new maximum and sum [M]. Hidden scores are -inf; a row that has seen only those keeps maximum -inf and
    sum 0.
    """
    new_max = tl.maximum(running_max, tl.max(scores, 1))
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf - -inf would be NaN
    weights = tl.exp2((scores - shift[:, None]) * LOG2E)
    rescale = tl.exp2((running_max - shift) * LOG2E)
    return weights, rescale, new_max, running_sum * rescale + tl.sum(weights, 1)


@triton.jit
def channel_tile(
    channels, batch, columns, WIDTH: tl.constexpr, NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr
):
    """u_k[j] of the channels, groups first, [WIDTH, N] fp32, 0 beyond NUM_CHANNELS.

    Keys beyond the named ones are in group 0.
    """
    k = tl.arange(0, WIDTH)[:, None]
    is_named = columns < varied(channels.num_columns)
    u = tl.zeros([WIDTH, columns.shape[0]], tl.float32)
    if NUM_GROUPS > 0:
        group_ptrs = channels.groups_ptr + columns
        if channels.stride_gb is not None:
            group_ptrs += batch * varied(channels.stride_gb)
        group = tl.load(group_ptrs, mask=is_named, other=0).to(tl.int32)
        u = ((k == group[None, :]) & (k < NUM_GROUPS)).to(tl.float32)  # one-hot
    if NUM_CHANNELS > NUM_GROUPS:
        weight_ptrs = channels.weights_ptr + (k - NUM_GROUPS) * varied(channels.stride_wc) + columns[None, :]
        if channels.stride_wb is not None:
            weight_ptrs += batch * varied(channels.stride_wb)
        is_weight = (k >= NUM_GROUPS) & (k < NUM_CHANNELS) & is_named[None, :]
        u += tl.load(weight_ptrs, mask=is_weight, other=0.0).to(tl.float32)
    return u
