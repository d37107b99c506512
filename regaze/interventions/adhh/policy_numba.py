"""The Numba part of `DropHeavyChannel`."""
# Compiled from its source; parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def,misc"

from __future__ import annotations

from regaze.kernels.numba.policy import policy


@policy
def drop_heavy_channel(masses, coefficients, count, head, numbers):
    """Coefficients of `DropHeavyChannel`; see `NumbaPart` for the arguments."""
    channel, threshold, listed = int(numbers[0]), numbers[1], int(numbers[2])
    for k in range(count):
        coefficients[k] = 1.0
    for number in range(listed):
        if int(numbers[3 + number]) == head and masses[channel] >= threshold:
            coefficients[channel] = 0.0
