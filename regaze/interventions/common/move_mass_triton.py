"""The Triton part of `MoveMass`."""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from regaze.kernels.triton.common import MAX_CHANNELS, TINY


@triton.jit
def move_mass(masses, heads, exists, numbers_ptr, WIDTH: tl.constexpr):
    """Coefficients [M, WIDTH] of `MoveMass`; see `TritonPart` for the arguments."""
    k = tl.arange(0, WIDTH)[None, :]
    gives, receives = tl.load(numbers_ptr + k), tl.load(numbers_ptr + MAX_CHANNELS + k)
    in_gate, keeps = tl.load(numbers_ptr + 2 * MAX_CHANNELS + k), tl.load(numbers_ptr + 3 * MAX_CHANNELS + k)
    min_mass, min_share = tl.load(numbers_ptr + 4 * MAX_CHANNELS), tl.load(numbers_ptr + 4 * MAX_CHANNELS + 1)
    held, gate = tl.sum(masses * receives, 1), tl.sum(masses * in_gate, 1)
    gain = tl.sum(masses * gives, 1) / tl.maximum(held, TINY)
    untouched = (gate < min_mass) | (held < gate * min_share) | (held <= 0)
    return tl.where(untouched[:, None], 1.0, keeps + gain[:, None] * receives)
