"""Policies: from the masses of a row's channels to the coefficients of its channels.

A policy sees the masses of one softmax row per head, [B, Hq, R, K], and returns coefficients of the same
shape; the row's weights become a'_j = a_j * sum_k coef_k u_k[j]. Policies are small frozen objects with a
name and plain numbers, so that a fused kernel can carry its own version of each beside the one here, which is
the specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from regaze.errors import BadParameterError


class Policy(Protocol):
    """Maps masses [B, Hq, R, K] (fp32) to coefficients [B, Hq, R, K]."""

    @property
    def channels(self) -> int:
        """Number K of channels the policy expects."""
        ...

    def __call__(self, masses: Tensor) -> Tensor: ...


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
        factors = _constant(self.factors, masses.device, masses.dtype)
        if not self.renormalise:
            return factors.expand_as(masses)
        total = masses.sum(-1, keepdim=True)
        scaled = (masses * factors).sum(-1, keepdim=True)
        tiny = torch.finfo(masses.dtype).tiny
        return (factors * (total / scaled.clamp_min(tiny))).masked_fill(scaled <= 0, 1.0)


@dataclass(frozen=True)
class Redistribute:
    """Move a fraction of the donors' mass to the receivers, in proportion to the receivers' weights.

    A head's row is edited when its mass on the `gate` channels is at least `min_mass` and the receivers hold
    at least the share `min_share` of that mass. The row total is preserved (methods with a conserved budget,
    such as VAR). Every channel named here must be a 0/1 group.

    Attributes:
        channels: number K of channels.
        donors, receivers, gate: channel numbers; donors and receivers are disjoint.
        moved: fraction in [0, 1] of the donors' mass that is given away.
        min_share, min_mass: the head test.
    """

    channels: int
    donors: tuple[int, ...]
    receivers: tuple[int, ...]
    gate: tuple[int, ...]
    moved: float
    min_share: float
    min_mass: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.moved <= 1.0:
            raise BadParameterError(f"moved is the fraction of mass given away, in [0, 1]; got {self.moved}")
        if both := set(self.donors) & set(self.receivers):
            raise BadParameterError(
                f"channels {sorted(both)} are donors and receivers; make them one or the other"
            )
        for role in ("donors", "receivers", "gate"):
            chosen = getattr(self, role)
            if len(set(chosen)) != len(chosen) or not all(0 <= channel < self.channels for channel in chosen):
                raise BadParameterError(
                    f"{role} must be distinct channels in 0..{self.channels - 1}, got {chosen}"
                )

    def __call__(self, masses: Tensor) -> Tensor:
        weights, kept, takes, min_mass, min_share, one, tiny = _redistribute(
            self, masses.device, masses.dtype
        )
        offered, receiver, gate = (masses @ weights).unbind(-1)
        untouched = (gate < min_mass) | (receiver < gate * min_share)
        if self.min_mass <= 0 or self.min_share <= 0:  # otherwise the test above implies it
            untouched = untouched | (receiver <= 0)
        # A receiver mass of 0 must not turn the branch not taken into inf * 0, nor its gradient into NaN.
        gain = offered / torch.maximum(receiver, tiny)
        return torch.where(untouched[..., None], one, torch.addcmul(kept, gain[..., None], takes))


@lru_cache(maxsize=256)
def _redistribute(policy: Redistribute, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The numbers of a `Redistribute` as constants on the device.

    First [K, 3], what masses are multiplied with to get the mass given away, that of the receivers and that
    of the gate; then [K] what each channel keeps, and [K] whether it takes part in the gain.
    """
    every = range(policy.channels)
    given = [policy.moved * (k in policy.donors) for k in every]
    takes = [float(k in policy.receivers) for k in every]
    gate = [float(k in policy.gate) for k in every]
    with torch.inference_mode(False):  # they outlive the block that needs them first
        weights = torch.tensor([given, takes, gate], device=device, dtype=dtype).T.contiguous()
        numbers = (
            [1.0 - g for g in given],
            takes,
            policy.min_mass,
            policy.min_share,
            1.0,
            torch.finfo(dtype).tiny,
        )
        return weights, *(torch.tensor(number, device=device, dtype=dtype) for number in numbers)


@lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A small constant, copied to the device once: a copy from the host in every layer would stall it."""
    with torch.inference_mode(False):  # it outlives the block that needs it first
        return torch.tensor(values, device=device, dtype=dtype)
