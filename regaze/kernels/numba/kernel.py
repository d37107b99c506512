"""The compiled kernel: edited attention and statistics of one query row per head, as decode steps need them.

In a small model an operation of torch costs some microseconds before it computes anything, and an edited row
takes a dozen of them. The kernel is one call, which may be about several layers. It goes through the rows in
a buffer [Lk] fp32, and all that it calls but policies is in this file, see `compiled`.
"""
# Compiled from its source; parameters are addresses and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,call-arg"

from __future__ import annotations

import ctypes
import math
import struct
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from regaze.kernels.numba.compiled import compiled

# Where a program, an array of int64, has what is done to the rows of a layer and what is reported of them. A
# part of the edit is an address (0: there is none), strides over samples and heads, and how many columns.
SLOPE, GAIN, BIAS, VALUE_GAIN, GROUPS, REPORTED_GROUPS = range(0, 24, 4)
HEAD_SCORE_GAIN, HEAD_GAIN, ACTIVE, NUMBERS = range(24, 40, 4)
POLICY, CHANNELS, REPORTED_CHANNELS, CHANGES_SCORES, REPORTS, SIZE = range(40, 46)

# Where a call has its numbers, of 8 bytes each: addresses (0: no tensor, or not requested; no query: the
# output of plain attention is there already, and only head gains act), sizes, strides in elements over
# samples, heads, keys and, of the keys, dimensions, the number of the first row among those whose statistics
# lie together, and the scaling. Keys may lie in pages: then `PAGES` is the address of their numbers, int32,
# and strides are those inside of a page. Each sample sees `GROWTH` keys more than the one before it.
PROGRAM, QUERY, KEY, VALUE, OUT, MASK, MASK_STRIDE = range(7)
MASSES, ENTROPY, LSE, TOP_WEIGHT, TOP_COLUMN = range(7, 12)
BATCH, HEADS, KV_HEADS, KEYS, DIM, VALUE_DIM = range(12, 18)
QUERY_STRIDES, KEY_STRIDES, VALUE_STRIDES, FIRST_ROW = 18, 20, 24, 27
PAGES, PAGE_SIZE, KEY_PAGE, VALUE_PAGE, GROWTH, SCALING = range(28, 34)

#: Packs the numbers of a call, in this order.
CALL = struct.Struct("=33qd")

#: What is reported: nothing, the row of plain attention, the edited one.
NOTHING, PLAIN, EDITED = range(3)

#: Keys whose groups are compared at once.
_BLOCK = 16

#: Elements of the keys that are scored for all heads that share them before the next ones: 8 KiB of them.
_NEAR = 2048

#: The score of a hidden key: finite, so that sums can be reordered; no other is as low.
_HIDDEN = np.float32(-3.0e38)

#: What LLVM may do to sums; infinities and NaN keep their meaning.
_SUMS = {"reassoc", "contract", "nsz", "arcp"}

_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: a small multiple of the first is exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LEAST = np.float32(-87.0)  # exp of less is below the smallest normal number
# exp on [-ln 2 / 2, ln 2 / 2], a Chebyshev fit of degree 7.
_C3, _C4, _C5 = np.float32(0.16666666), np.float32(0.041666225), np.float32(0.008333579)
_C6, _C7 = np.float32(0.0013948135), np.float32(0.00019766914)
_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)


@njit(fastmath={"contract"})
def _exp(x):
    """e^x for x <= 0 within two roundings, in operations that vectorise; 0 below -87."""
    power = np.floor(x * _LOG2_E + _HALF)
    rest = (x - power * _LN2_HIGH) - power * _LN2_LOW
    series = _C7
    series = series * rest + _C6
    series = series * rest + _C5
    series = series * rest + _C4
    series = series * rest + _C3
    series = series * rest + _HALF
    series = series * rest + _ONE
    series = series * rest + _ONE
    exponent = np.int32((np.int32(power) + 127) << 23)  # of 2^power, as its bits
    return _ZERO if x < _LEAST else series * exponent.view(np.float32)


@njit(fastmath=_SUMS)
def _scores(row, first, stop, query, query_at, key, key_at, key_stride, dim, scaling):
    """Scaled scores of the query at an offset with the keys first..stop, the first of them at `key_at`.

    Four keys at a time: their sums run beside each other.
    """
    fours = stop - (stop - first) % 4
    for j in range(first, fours, 4):
        at_0 = key_at + (j - first) * key_stride
        at_1, at_2, at_3 = at_0 + key_stride, at_0 + 2 * key_stride, at_0 + 3 * key_stride
        sum_0 = sum_1 = sum_2 = sum_3 = _ZERO
        for d in range(dim):
            factor = query[query_at + d]
            sum_0 += factor * key[at_0 + d]
            sum_1 += factor * key[at_1 + d]
            sum_2 += factor * key[at_2 + d]
            sum_3 += factor * key[at_3 + d]
        row[j], row[j + 1] = sum_0 * scaling, sum_1 * scaling
        row[j + 2], row[j + 3] = sum_2 * scaling, sum_3 * scaling
    for j in range(fours, stop):
        product, at = _ZERO, key_at + (j - first) * key_stride
        for d in range(dim):
            product += query[query_at + d] * key[at + d]
        row[j] = product * scaling


@njit(fastmath=_SUMS)
def _scores_across(row, first, stop, query, query_at, key, key_at, dim_stride, dim, scaling):
    """As `_scores`, of keys side by side whose dimensions lie `dim_stride` apart."""
    for j in range(first, stop):
        row[j] = _ZERO
    for d in range(dim):
        factor, at = query[query_at + d] * scaling, key_at + d * dim_stride
        for j in range(first, stop):
            row[j] += factor * key[at + j - first]


@njit
def _hide(row, mask, mask_at):
    """Hide the keys that the mask at an offset does not show."""
    for j in range(row.size):
        row[j] = row[j] if mask[mask_at + j] else _HIDDEN


@njit
def _add_slope(row, slope, named):
    """s + slope |s| on the named keys."""
    for j in range(named):
        row[j] += slope[j] * abs(row[j])


@njit
def _multiply(row, gain, named):
    """The named keys times their gains."""
    for j in range(named):
        row[j] *= gain[j]


@njit
def _scale(row, gain):
    """Every key times one gain."""
    for j in range(row.size):
        row[j] *= gain


@njit
def _add_bias(row, bias, named):
    """Scores plus a column bias, which hides its key where it is -inf."""
    for j in range(named):
        row[j] = _HIDDEN if bias[j] == -np.inf else row[j] + bias[j]


@njit(fastmath={"nnan", "nsz", "reassoc"})
def _largest(row):
    largest = _HIDDEN
    for j in range(row.size):
        largest = max(largest, row[j])
    return largest


@njit
def _has_nan(row):
    found = False
    for j in range(row.size):
        found |= row[j] != row[j]
    return found


@njit(fastmath=_SUMS)
def _softmax(row):
    """From scores to weights; the log-sum-exp. A row whose keys are all hidden becomes zeros."""
    largest = _largest(row)
    if largest == _HIDDEN and not _has_nan(row):
        row[:] = _ZERO
        return np.float32(-np.inf)
    total = _ZERO
    for j in range(row.size):
        row[j] = _exp(row[j] - largest)
        total += row[j]
    for j in range(row.size):
        row[j] /= total
    return largest + np.float32(math.log(total))


@njit(fastmath=_SUMS)
def _sum_groups(row, groups, named, sums):
    """Weights summed by group into `sums` [K]; keys after the named ones are in group 0.

    Groups come in runs, so most blocks of keys have one: their sum is made in vectors.
    """
    sums[:] = _ZERO
    whole = named - named % _BLOCK
    for start in range(0, whole, _BLOCK):
        first, same, total = groups[start], True, _ZERO
        for j in range(start, start + _BLOCK):
            same &= groups[j] == first
        if same:
            for j in range(start, start + _BLOCK):
                total += row[j]
            sums[first] += total
        else:
            for j in range(start, start + _BLOCK):
                sums[groups[j]] += row[j]
    for j in range(whole, named):
        sums[groups[j]] += row[j]
    later = _ZERO
    for j in range(named, row.size):
        later += row[j]
    sums[0] += later


@njit
def _multiply_groups(row, groups, named, coefficients):
    """Weights times the coefficient of their group."""
    for j in range(named):
        row[j] *= coefficients[groups[j]]
    for j in range(named, row.size):
        row[j] *= coefficients[0]


@njit(fastmath=_SUMS)
def _add_values(row, first, stop, value, value_at, value_stride, out, out_at, dim, gain):
    """Add weights times values to the row's output [Dv], of the keys first..stop, times its head's gain."""
    for j in range(first, stop):
        weight, at = row[j] * gain, value_at + (j - first) * value_stride
        for d in range(dim):
            out[out_at + d] += weight * value[at + d]


@njit
def _entropy(row):
    """In nats; -inf where a value gain has made a weight negative."""
    total = 0.0
    for j in range(row.size):
        if row[j] > _ZERO:
            total -= row[j] * math.log(np.float64(row[j]))
        elif row[j] < _ZERO:
            total = -np.inf
    return np.float32(total)


@njit
def _strongest(row):
    """The number of the strongest key, the first of equals."""
    best = 0
    for j in range(1, row.size):
        if row[j] > row[best]:
            best = j
    return best


def _pointer(kind: Any) -> Any:
    """A function of compiled code that makes a pointer of an address."""

    @intrinsic
    def pointer(context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


_floats, _bytes, _integers = _pointer(types.float32), _pointer(types.uint8), _pointer(types.int64)
_doubles, _page_numbers, _CALL_SIZE = _pointer(types.float64), _pointer(types.int32), CALL.size


@njit
def _at(program, part, sample, head, size):
    """The address of a part's numbers for a head, `size` bytes each."""
    return program[part] + (sample * program[part + 1] + head * program[part + 2]) * size


@njit
def _named(row, program, part):
    """How many of the keys that a row sees a part names: rows of a prompt see only those before them."""
    return min(program[part + 3], row.size)


@njit
def _map_scores(row, program, sample, head):
    """The score map and the column bias; see `AttentionEdit`."""
    if program[SLOPE]:
        _add_slope(row, _floats(_at(program, SLOPE, sample, head, 4)), _named(row, program, SLOPE))
    if program[GAIN]:
        _multiply(row, _floats(_at(program, GAIN, sample, head, 4)), _named(row, program, GAIN))
    if program[HEAD_SCORE_GAIN]:
        _scale(row, _floats(_at(program, HEAD_SCORE_GAIN, sample, head, 4))[0])
    if program[BIAS]:
        _add_bias(row, _floats(_at(program, BIAS, sample, head, 4)), _named(row, program, BIAS))


@njit
def _report(row, log_sum, program, sample, at, masses, entropy, lse, top_weight, top_column):
    """Write what is requested of a row of weights, the one with number `at`."""
    count = program[REPORTED_CHANNELS]
    if count:
        sums, into = np.empty(count, np.float32), _floats(masses)
        groups = _bytes(_at(program, REPORTED_GROUPS, sample, 0, 1))
        _sum_groups(row, groups, _named(row, program, REPORTED_GROUPS), sums)
        for k in range(count):
            into[at * count + k] = sums[k]
    if entropy:
        _floats(entropy)[at] = _entropy(row)
    if lse:
        _floats(lse)[at] = log_sum
    if top_weight:
        best = _strongest(row)
        _floats(top_weight)[at] = row[best]
        _integers(top_column)[at] = best


@intrinsic
def _call_policy(context, address, masses, coefficients, count, head, numbers):
    """Call the compiled function at an address with a policy's arguments, see `policy`."""

    def generate(context, builder, signature, arguments):
        kinds = [context.get_value_type(kind) for kind in signature.args[1:]]
        function = builder.inttoptr(arguments[0], ir.FunctionType(ir.VoidType(), kinds).as_pointer())
        builder.call(function, arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@njit
def _score_keys(rows, call, sample, shared, scaling):
    """Scaled scores [heads, keys] of a sample's queries in the heads that share a key head, with every key.

    Keys are taken in blocks, which stay in the nearest cache for all of these heads.
    """
    query, key, dim = _floats(call[QUERY]), _floats(call[KEY]), call[DIM]
    heads, keys = rows.shape
    query_at = sample * call[QUERY_STRIDES] + shared * heads * call[QUERY_STRIDES + 1]
    key_at = sample * call[KEY_STRIDES] + shared * call[KEY_STRIDES + 1]
    key_stride, dim_stride = call[KEY_STRIDES + 2], call[KEY_STRIDES + 3]
    pages, size = call[PAGES], call[PAGE_SIZE] if call[PAGES] else max(_NEAR // dim, 4)
    for first in range(0, keys, size):
        stop, at = min(first + size, keys), key_at
        at += _page_numbers(pages)[first // size] * call[KEY_PAGE] if pages else first * key_stride
        for head in range(heads):
            own = query_at + head * call[QUERY_STRIDES + 1]
            if dim_stride == 1:
                _scores(rows[head], first, stop, query, own, key, at, key_stride, dim, scaling)
            else:
                _scores_across(rows[head], first, stop, query, own, key, at, dim_stride, dim, scaling)


@njit
def _write_output(row, call, sample, head, gain):
    """The output [Dv] of a sample in one head."""
    value, out, dim = _floats(call[VALUE]), _floats(call[OUT]), call[VALUE_DIM]
    shared = head // (call[HEADS] // call[KV_HEADS])
    value_at = sample * call[VALUE_STRIDES] + shared * call[VALUE_STRIDES + 1]
    value_stride, out_at = call[VALUE_STRIDES + 2], (sample * call[HEADS] + head) * dim
    pages, size = call[PAGES], call[PAGE_SIZE] if call[PAGES] else row.size
    for d in range(dim):
        out[out_at + d] = _ZERO
    for first in range(0, row.size, size):
        stop, at = min(first + size, row.size), value_at
        if pages:
            at += _page_numbers(pages)[first // size] * call[VALUE_PAGE]
        _add_values(row, first, stop, value, at, value_stride, out, out_at, dim, gain)


@njit
def _gain_heads(call):
    """The output that is there already, times the gains of its heads."""
    program, out, dim, at = _integers(call[PROGRAM]), _floats(call[OUT]), call[VALUE_DIM], 0
    for sample in range(call[BATCH]):
        for head in range(call[HEADS]):
            gain = _floats(_at(program, HEAD_GAIN, sample, head, 4))[0]
            for d in range(dim):
                out[at + d] *= gain
            at += dim


@njit
def _attend(call, scaling):
    program = _integers(call[PROGRAM])
    mask_at, mask, mask_sample = call[MASK], _bytes(call[MASK]), call[MASK_STRIDE]
    masses, entropy, lse = call[MASSES], call[ENTROPY], call[LSE]
    top_weight, top_column = call[TOP_WEIGHT], call[TOP_COLUMN]
    batch, heads, reports, first_row = call[BATCH], call[HEADS], program[REPORTS], call[FIRST_ROW]
    most = call[KEYS] + (batch - 1) * call[GROWTH]
    group = heads // call[KV_HEADS]  # of the heads that share a key head
    whole_row, whole_raw = np.empty(most, np.float32), np.empty((group, most), np.float32)
    sums = np.empty(max(program[CHANNELS], 1), np.float32)
    coefficients = np.empty_like(sums)
    for sample in range(batch):
        acts = program[ACTIVE] == 0 or _bytes(_at(program, ACTIVE, sample, 0, 1))[0] != 0
        maps = acts and program[CHANGES_SCORES] != 0
        keys = call[KEYS] + sample * call[GROWTH]
        row = whole_row[:keys]
        for head in range(heads):
            place, member = first_row + sample * heads + head, head % group
            if member == 0:
                _score_keys(whole_raw[:, :keys], call, sample, head // group, scaling)
            raw = whole_raw[member, :keys]
            row[:] = raw
            if maps and reports != PLAIN:
                _map_scores(row, program, sample, head)
            if mask_at:
                _hide(row, mask, sample * mask_sample)
            log_sum = _softmax(row)
            if reports == PLAIN:
                _report(row, log_sum, program, sample, place, masses, entropy, lse, top_weight, top_column)
                if maps and call[OUT]:  # the edited row after the plain one
                    row[:] = raw
                    _map_scores(row, program, sample, head)
                    if mask_at:
                        _hide(row, mask, sample * mask_sample)
                    log_sum = _softmax(row)
            if acts and program[POLICY]:
                groups = _bytes(_at(program, GROUPS, sample, 0, 1))
                _sum_groups(row, groups, _named(row, program, GROUPS), sums)
                _call_policy(
                    program[POLICY],
                    sums.ctypes.data,
                    coefficients.ctypes.data,
                    sums.size,
                    head,
                    program[NUMBERS],
                )
                _multiply_groups(row, groups, _named(row, program, GROUPS), coefficients)
            if acts and program[VALUE_GAIN]:
                gains = _floats(_at(program, VALUE_GAIN, sample, head, 4))
                _multiply(row, gains, _named(row, program, VALUE_GAIN))
            if reports == EDITED:
                _report(row, log_sum, program, sample, place, masses, entropy, lse, top_weight, top_column)
            if call[OUT]:
                gain = _ONE
                if program[HEAD_GAIN]:
                    gain = _floats(_at(program, HEAD_GAIN, sample, head, 4))[0]
                _write_output(row, call, sample, head, gain)


@compiled(types.void(types.int64, types.int64))
def _attend_calls(calls, count):
    for number in range(count):
        at = calls + number * _CALL_SIZE
        call = _integers(at)
        if call[QUERY]:
            _attend(call, np.float32(_doubles(at)[SCALING]))
        else:
            _gain_heads(call)


#: The kernel: calls one after the other in memory, and how many there are.
attend_calls = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int64)(_attend_calls.address)
