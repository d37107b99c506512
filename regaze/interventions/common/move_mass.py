"""`MoveMass`, the policy of VAR and AttnReal: attention mass moves from some channels to others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.kernels import Channels, NumbaPart, TritonPart, pad_channels
from regaze.kernels.policies import constant

#: Less than this of a row is no mass.
_NOTHING = 1e-30


@dataclass(frozen=True)
class MoveMass:
    """Move a fraction of the donors' mass to the receivers, in proportion to the receivers' weights.

    A head's row is edited when its mass on the `gate` channels is at least `min_mass` and the receivers hold
    at least the share `min_share` of that mass. The row total is preserved. Every channel named here must be
    a 0/1 group.

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

    @property
    def passes_empty(self) -> bool:
        """Whether the head test alone can pass a row whose receivers hold nothing, in any precision."""
        return self.min_mass * self.min_share < _NOTHING

    def shares(self) -> tuple[list[float], list[float], list[float]]:
        """Per channel: the fraction it gives away, whether it receives, and whether it is in the gate."""
        every = range(self.channels)
        gives = [self.moved * (k in self.donors) for k in every]
        receives, gate = ([float(k in role) for k in every] for role in (self.receivers, self.gate))
        return gives, receives, gate

    def __call__(self, masses: Tensor) -> Tensor:
        weights, remains, receives, min_mass, min_share, one, tiny = _constants(
            self, masses.device, masses.dtype
        )
        given, held, gate = (masses @ weights).unbind(-1)
        untouched = (gate < min_mass) | (held < gate * min_share)
        if self.passes_empty:
            untouched = untouched | (held <= 0)
        # A receiver mass of 0 must not turn the branch not taken into inf * 0, nor its gradient into NaN.
        gain = given / torch.maximum(held, tiny)
        return torch.where(untouched[..., None], one, torch.addcmul(remains, gain[..., None], receives))

    def fold(self, channels: Channels) -> Callable[[Tensor], Tensor] | None:
        return _FoldedMoveMass(self, channels) if channels.weights is None else None

    def triton_part(self, heads: int) -> TritonPart:
        gives, receives, gate = self.shares()
        keeps = [1.0 - g for g in gives]
        numbers = (*pad_channels(gives, receives, gate, keeps), self.min_mass, self.min_share)
        return TritonPart("regaze.interventions.common.move_mass_triton:move_mass", numbers)

    def numba_part(self) -> NumbaPart:
        return _numba_part(self)


@lru_cache(maxsize=256)
def _numba_part(policy: MoveMass) -> NumbaPart:
    numbers = (*(number for row in policy.shares() for number in row), policy.min_mass, policy.min_share)
    return NumbaPart("regaze.interventions.common.move_mass_numba:move_mass", numbers)


@lru_cache(maxsize=256)
def _constants(policy: MoveMass, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The numbers of a `MoveMass` as constants on the device.

    First [K, 3], what masses are multiplied with to get the mass given away, that of the receivers and that
    of the gate; then [K] what each channel keeps, and [K] whether it receives.
    """
    gives, receives, gate = policy.shares()
    weights = [number for column in zip(gives, receives, gate, strict=True) for number in column]
    keeps = [1.0 - g for g in gives]
    single = policy.min_mass, policy.min_share, 1.0, torch.finfo(dtype).tiny
    packed = constant((*weights, *keeps, *receives, *single), device, dtype)  # one copy for all
    count = policy.channels
    first, keeps_, receives_, rest = packed.split((3 * count, count, count, len(single)))
    return first.view(count, 3), keeps_, receives_, *rest.unbind()


class _FoldedMoveMass:
    """A `MoveMass` multiplied into the columns of its channels: fewer small operations at decode.

    Mixtures of the channels tell all that the policy needs of a row: what its receivers hold, what its donors
    give, and numbers that are negative where the head test fails. Where none is, a weight a becomes
    a (1 - gives + given / held * receives), elsewhere it stays.
    """

    def __init__(self, policy: MoveMass, channels: Channels):
        gives, receives, gate = policy.shares()
        share = [r - policy.min_share * g for r, g in zip(receives, gate, strict=True)]
        # Where nothing is held the gain must stay finite: it multiplies zeros.
        measured = [(receives, _NOTHING), (gives, 0.0), (gate, -policy.min_mass), (share, 0.0)]
        if policy.passes_empty:
            measured.append((receives, -_NOTHING))
        applied = [[-g for g in gives], receives, *[[0.0] * len(gate)] * (len(measured) - 2)]
        mixed = [*(mixture for mixture, _ in measured), *applied]
        numbers = (
            *(number for mixture in mixed for number in mixture),
            *(added for _, added in measured),
            1.0,
        )
        packed = constant(numbers, channels.matrix.device, torch.float32)  # one copy for all
        mixtures, self.added, self.one = packed.split((len(mixed) * len(gate), len(measured), 1))
        self.measured, self.applied = map(channels.mixed, mixtures.view(2, len(measured), len(gate)))
        self.tests = len(measured) - 2

    def __call__(self, weights: Tensor) -> Tensor:
        """Rows [B, M, Lk] as the policy leaves them."""
        batch, _, keys = weights.shape
        measured, applied = self.measured.upto(keys), self.applied.upto(keys)
        if measured.shape[0] != batch:
            measured, applied = (x.expand(batch, -1, -1) for x in (measured, applied))
        found = torch.baddbmm(self.added, weights, measured.mT)  # held, given, tests
        passed = torch.heaviside(found.narrow(-1, 2, self.tests).amin(-1, True), self.one)
        coefficients = found / found.narrow(-1, 0, 1) * passed  # 1, gain, and some that meet zeros
        return torch.baddbmm(self.one, coefficients, applied).mul_(weights)
