"""The Triton part of `DropHeavyChannel`."""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from regaze.kernels.triton.common import MAX_CHANNELS


@triton.jit
def drop_heavy_channel(masses, heads, exists, numbers_ptr, WIDTH: tl.constexpr):
    """Coefficients [M, WIDTH] of `DropHeavyChannel`; see `TritonPart` for the arguments."""
    dropped = tl.load(numbers_ptr + tl.arange(0, WIDTH)[None, :])
    threshold = tl.load(numbers_ptr + MAX_CHANNELS)
    is_listed = tl.load(numbers_ptr + MAX_CHANNELS + 1 + heads) > 0
    held = tl.sum(masses * dropped, 1)[:, None]
    return tl.where(is_listed & (held >= threshold) & (dropped > 0), 0.0, 1.0)
