"""The Triton part of `AmplifyTopHeads`: the rows it gets are all heads of one query row."""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from regaze.kernels.triton.common import MAX_CHANNELS, TINY


@triton.jit
def in_top(x, count):
    """Which of x [M] are among the `count` largest; of equal ones the first."""
    i = tl.arange(0, x.shape[0])
    ahead = (x[None, :] > x[:, None]) | ((x[None, :] == x[:, None]) & (i[None, :] < i[:, None]))
    return tl.sum(ahead.to(tl.int32), 1) < count


@triton.jit
def amplify_top_heads(masses, heads, exists, numbers_ptr, WIDTH: tl.constexpr):
    """Coefficients [M, WIDTH] of `AmplifyTopHeads`; see `TritonPart` for the arguments."""
    k = tl.arange(0, WIDTH)[None, :]
    is_image, is_query = tl.load(numbers_ptr + k), tl.load(numbers_ptr + MAX_CHANNELS + k)
    is_salient = tl.load(numbers_ptr + 2 * MAX_CHANNELS + k)
    count = tl.load(numbers_ptr + 3 * MAX_CHANNELS).to(tl.int32)
    query_gain = tl.load(numbers_ptr + 3 * MAX_CHANNELS + 1)
    image, query = tl.sum(masses * is_image, 1), tl.sum(masses * is_query, 1)
    salient, total = tl.sum(masses * is_salient, 1), tl.sum(masses, 1)

    # Padding must not be among the top heads: masses are not negative.
    head_exists = tl.sum(exists.to(tl.int32), 1) > 0
    top_image = head_exists & in_top(tl.where(head_exists, image, -1.0), count)
    top_query = head_exists & in_top(tl.where(head_exists, query, -1.0), count)

    # Realised gain: image mass of the top heads together, after and before.
    before, after = tl.sum(tl.where(top_image, image, 0.0), 0), tl.sum(tl.where(top_image, salient, 0.0), 0)
    gain = tl.where(before > 0, after / tl.maximum(before, TINY), 1.0)
    of_query = tl.where(top_query, query_gain * gain, 1.0)

    # The salient channel repeats image keys, so it is no part of a row's total.
    total = total - salient
    edited = total - image - query + tl.where(top_image, salient, image) + query * of_query
    scale = tl.where(edited > 0, total / tl.maximum(edited, TINY), 1.0)[:, None]
    top = top_image[:, None]
    coefficients = tl.where(is_query > 0, scale * of_query[:, None], scale)
    coefficients = tl.where((is_image > 0) & top, 0.0, coefficients)
    return tl.where((is_salient > 0) & (top == 0), 0.0, coefficients)
