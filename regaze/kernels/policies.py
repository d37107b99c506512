"""Policies: from the masses of a row's channels to the coefficients of its channels.

A policy sees the masses of one softmax row per head, [B, Hq, R, K], and returns coefficients of the same
shape; the row's weights become a'_j = a_j * sum_k coef_k u_k[j]. It is a small frozen dataclass of plain
numbers with up to three parts:

    reference     `__call__(masses) -> coefficients` in torch. It is the specification, and all that a policy
                  needs: every backend runs it on masses that the backend computes.
    torch part    `fold(channels) -> function of rows`, optional. For policies that are cheaper when they are
                  multiplied into the columns of their channels once; see `FoldedPolicy`.
    Triton part   `triton_part(heads) -> TritonPart`, optional. Names a device function that runs inside the
                  fused kernels, so that no masses have to leave them; see `FusedPolicy`.
    Numba part    `numba_part() -> NumbaPart`, optional. The same for the compiled kernel of the CPU; see
                  `CompiledPolicy`.

An optional part computes what the reference computes. It is used only where it applies: `fold` in rows that
the torch backend holds whole, `triton_part` up to `MAX_CHANNELS` channels. A subclass that redefines
`__call__` alone loses the optional parts of its base.

A method brings its policy from its own folder (`regaze.interventions.gift`, `.adhh`), or from
`regaze.interventions.common` if it shares it. Only what is general is here: `Scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from regaze.errors import ShapeError
from regaze.kernels.channels import Channels

#: Most channels of a policy's Triton part; with more, the reference runs.
MAX_CHANNELS = 16


class Policy(Protocol):
    """Maps masses [B, Hq, R, K] (fp32, or fp64 in the reference) to coefficients [B, Hq, R, K]."""

    @property
    def channels(self) -> int:
        """Number K of channels the policy expects."""
        ...

    def __call__(self, masses: Tensor) -> Tensor: ...


class FoldedPolicy(Policy, Protocol):
    """A policy with a torch part."""

    def fold(self, channels: Channels) -> Callable[[Tensor], Tensor] | None:
        """A function that edits rows [B, M, Lk] of fp32 weights directly, or None for these channels.

        It may count on rows that sum to 1 (or to 0, where nothing is visible). The torch backend calls it at
        decode, where no gradient is needed and no sink logit takes part, and uses the function for all later
        calls with the edit.
        """
        ...


class FusedPolicy(Policy, Protocol):
    """A policy with a Triton part. It is hashable: its numbers are packed once."""

    def triton_part(self, heads: int) -> TritonPart:
        """What the kernels run for rows of `heads` query heads."""
        ...


@dataclass(frozen=True)
class TritonPart:
    """The Triton part of a policy: a device function and the numbers it reads.

    The function has the signature

        @triton.jit
        def function(masses, heads, exists, numbers_ptr, WIDTH: tl.constexpr)

    and returns coefficients [M, WIDTH] from masses [M, WIDTH] of M rows, with the K channels padded to
    WIDTH, a power of two (mass 0). `heads` [M, 1] is the query head of each row, `exists` [M, 1] says which
    of the M rows are no padding, `numbers_ptr` points to `numbers` as fp32.

    Attributes:
        function: "package.module:name" of the device function. Its module is imported at the first launch,
            so that a method does not import Triton.
        numbers: constants of the policy; see `pad_channels` for numbers per channel.
        couples_heads: whether coefficients of a head depend on masses of other heads. Then the M rows are
            all heads of one query row, and the function runs in a kernel of its own; otherwise they are any
            rows, and it runs inside the kernel that has their masses.
    """

    function: str
    numbers: tuple[float, ...]
    couples_heads: bool = False


class CompiledPolicy(Policy, Protocol):
    """A policy with a Numba part."""

    def numba_part(self) -> NumbaPart:
        """What the compiled kernel runs."""
        ...


@dataclass(frozen=True)
class NumbaPart:
    """The Numba part of a policy: a compiled function and the numbers it reads.

    The function has the signature

        @regaze.kernels.numba.policy.policy
        def function(masses, coefficients, count, head, numbers)

    and writes the `count` coefficients of one row of a query head, from its masses. What is not a number is a
    pointer to fp32.

    Attributes:
        function: "package.module:name" of the function. Its module is imported at the first call, so that a
            method does not import Numba.
        numbers: constants of the policy.
    """

    function: str
    numbers: tuple[float, ...]


def pad_channels(*rows: Sequence[float]) -> tuple[float, ...]:
    """Numbers per channel one row after the other, each padded with 0 to `MAX_CHANNELS` for a device."""
    return tuple(number for row in rows for number in (*row, *[0.0] * (MAX_CHANNELS - len(row))))


def coefficients_of(policy: Policy, masses: Tensor) -> Tensor:
    """Coefficients [B, Hq, R, K] by the reference of a policy.

    Raises:
        ShapeError: the policy returned another shape.
    """
    coefficients = policy(masses)
    if coefficients.shape != masses.shape:
        raise ShapeError(
            f"policy {type(policy).__name__} returned coefficients {list(coefficients.shape)} for masses "
            f"[B, Hq, R, K] = {list(masses.shape)}: it must keep the shape"
        )
    return coefficients


def offers(policy: Policy, part: str) -> bool:
    """Whether a policy has an optional part ("fold", "triton_part") that belongs to its reference."""
    return _offers(type(policy), part)


@torch.compiler.assume_constant_result
def _offers(kind: type[Any], part: str) -> bool:
    for base in kind.__mro__:
        if part in vars(base):
            return True
        if "__call__" in vars(base):  # redefined since the part was written
            return False
    return False


@dataclass(frozen=True)
class Scale:
    """Constant coefficients: channel k is scaled by `factors[k]`.

    With `renormalise` the row keeps its total mass; a row that the factors would empty is left alone.
    """

    factors: tuple[float, ...]
    renormalise: bool = False

    @property
    def channels(self) -> int:
        return len(self.factors)

    def __call__(self, masses: Tensor) -> Tensor:
        factors = constant(self.factors, masses.device, masses.dtype)
        if not self.renormalise:
            return factors.expand_as(masses)
        total = masses.sum(-1, keepdim=True)
        scaled = (masses * factors).sum(-1, keepdim=True)
        tiny = torch.finfo(masses.dtype).tiny
        return (factors * (total / scaled.clamp_min(tiny))).masked_fill(scaled <= 0, 1.0)

    def triton_part(self, heads: int) -> TritonPart:
        return TritonPart(f"regaze.kernels.triton.policy:{self._function}", pad_channels(self.factors))

    def numba_part(self) -> NumbaPart:
        return NumbaPart(f"regaze.kernels.numba.policy:{self._function}", self.factors)

    @property
    def _function(self) -> str:
        return "scale_keeping_mass" if self.renormalise else "scale"


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A small constant, copied to the device once, without waiting for it."""
    with torch.inference_mode(False):  # it outlives the block that needs it first
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
