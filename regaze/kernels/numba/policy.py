"""What the Numba part of a policy is made of."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

from numba import types

from regaze.kernels.numba.compiled import compiled

_FLOATS = types.CPointer(types.float32)

#: Decorates a function (masses, coefficients, count, head, numbers) as `NumbaPart` describes it.
policy = compiled(types.void(_FLOATS, _FLOATS, types.int64, types.int64, _FLOATS))


@lru_cache(maxsize=64)
def address(name: str) -> int:
    """Of the compiled function "package.module:name"."""
    module, _, attribute = name.partition(":")
    function: Any = getattr(import_module(module), attribute)
    return int(function.address)


@policy
def scale(masses, coefficients, count, head, numbers):  # type: ignore[no-untyped-def]
    """Coefficients of `Scale`."""
    for k in range(count):
        coefficients[k] = numbers[k]


@policy
def scale_keeping_mass(masses, coefficients, count, head, numbers):  # type: ignore[no-untyped-def]
    """Coefficients of `Scale` with `renormalise`."""
    total, scaled = masses[0] - masses[0], masses[0] - masses[0]
    for k in range(count):
        total += masses[k]
        scaled += masses[k] * numbers[k]
    for k in range(count):
        coefficients[k] = numbers[k] * (total / scaled) if scaled > 0 else 1.0
