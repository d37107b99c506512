"""Partial sums of key splits: their layout, and how a row's splits are joined."""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from regaze.kernels.triton.common import LOG2E

#: Per split and row, `sums` holds the maximum, the total and the K masses; `measured` holds the maximum, the
#: total, the entropy sum and the strongest column, then the masses of the channels on record.
SUMS = tl.constexpr(2)
MEASURED = tl.constexpr(4)


@triton.jit
def merge_splits(partials, at, exists, heads, sinks, splits, STRIDE: tl.constexpr, S: tl.constexpr):
    """Join the softmax of all splits of rows `at` [R].

    `partials` holds records of STRIDE floats, which start with maximum and total. Returns the places [R, S]
    of the records and which exist, factors [R, S] that turn the sums of a split into weights, and for each
    row the maximum of its scores, what its denominator is relative to, this denominator, and that without the
    sink.
    """
    split = tl.arange(0, S)[None, :]
    place = (at[:, None] * splits + split) * STRIDE
    exists = exists[:, None] & (split < splits)
    tops = tl.load(partials + place, mask=exists, other=float("-inf"))
    totals = tl.load(partials + place + 1, mask=exists, other=0.0)
    best = tl.max(tops, 1)
    top = best
    if sinks is not None:
        sink = tl.load(sinks + heads).to(tl.float32)
        top = tl.maximum(top, sink)
    shift = tl.where(top == float("-inf"), 0.0, top)
    factors = tl.exp2((tops - shift[:, None]) * LOG2E)
    seen = tl.sum(factors * totals, 1)
    whole = seen
    if sinks is not None:
        whole += tl.exp2((sink - shift) * LOG2E)
    inverse = tl.where(whole > 0, 1.0 / whole, 0.0)
    return place, exists, factors * inverse[:, None], best, shift, whole, seen
