"""Partial sums of key splits: their layout, and how the splits of a row are merged."""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from regaze.kernels.triton.common import LOG2E

#: What a split stores per row before the masses of its channels. `partial_sums`: maximum, sum.
#: `partial_stats`: maximum, sum, sum for the entropy, strongest column.
SUMS_HEADER = tl.constexpr(2)
STATS_HEADER = tl.constexpr(4)


@triton.jit
def merge_splits(
    partials_ptr,
    row_offsets,
    row_exists,
    sink,
    num_splits,
    RECORD_SIZE: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Merge the softmax of all splits of rows `row_offsets` [R] of [B Hq Lq].

    `partials_ptr` points to records [B Hq Lq, splits] of RECORD_SIZE floats that start with maximum and sum,
    `sink` are the sink logits of the rows, [R] or one, or None.

    Returns:
        offsets [R, S] of the records and which exist, factors [R, S] that turn the sums of a split into
        weights, and per row [R] the maximum of its scores, the shift that its denominator is relative to,
        this denominator, and the denominator without the sink.
    """
    split = tl.arange(0, BLOCK_S)[None, :]
    offsets = (row_offsets[:, None] * num_splits + split) * RECORD_SIZE
    split_exists = row_exists[:, None] & (split < num_splits)
    split_max = tl.load(partials_ptr + offsets, mask=split_exists, other=float("-inf"))
    split_sum = tl.load(partials_ptr + offsets + 1, mask=split_exists, other=0.0)
    row_max = tl.max(split_max, 1)
    shift = row_max
    if sink is not None:
        shift = tl.maximum(shift, sink)
    shift = tl.where(shift == float("-inf"), 0.0, shift)  # a row without keys; -inf - -inf would be NaN
    factors = tl.exp2((split_max - shift[:, None]) * LOG2E)
    keys_sum = tl.sum(factors * split_sum, 1)
    denominator = keys_sum
    if sink is not None:
        denominator += tl.exp2((sink - shift) * LOG2E)
    inverse = tl.where(denominator > 0, 1.0 / denominator, 0.0)
    return offsets, split_exists, factors * inverse[:, None], row_max, shift, denominator, keys_sum
