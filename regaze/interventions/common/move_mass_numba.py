"""The Numba part of `MoveMass`."""
# Compiled from its source; parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def,misc"

from __future__ import annotations

import numpy as np

from regaze.kernels.numba.policy import policy

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


@policy
def move_mass(masses, coefficients, count, head, numbers):
    """Coefficients of `MoveMass`; see `NumbaPart` for the arguments."""
    given, held, gate = _ZERO, _ZERO, _ZERO
    for k in range(count):
        given += masses[k] * numbers[k]
        held += masses[k] * numbers[count + k]
        gate += masses[k] * numbers[2 * count + k]
    moves = gate >= numbers[3 * count] and held >= gate * numbers[3 * count + 1] and held > _ZERO
    gain = given / held if moves else _ZERO
    for k in range(count):
        coefficients[k] = _ONE - numbers[k] + gain * numbers[count + k] if moves else _ONE
