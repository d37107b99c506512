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

    @property
    def passes_empty(self) -> bool:
        """Whether the head test alone can pass a row whose receivers hold nothing, in any precision."""
        return self.min_mass * self.min_share < 1e-30

    def __call__(self, masses: Tensor) -> Tensor:
        weights, kept, takes, min_mass, min_share, one, tiny = _redistribute(
            self, masses.device, masses.dtype
        )
        offered, receiver, gate = (masses @ weights).unbind(-1)
        untouched = (gate < min_mass) | (receiver < gate * min_share)
        if self.passes_empty:
            untouched = untouched | (receiver <= 0)
        # A receiver mass of 0 must not turn the branch not taken into inf * 0, nor its gradient into NaN.
        gain = offered / torch.maximum(receiver, tiny)
        return torch.where(untouched[..., None], one, torch.addcmul(kept, gain[..., None], takes))


@dataclass(frozen=True)
class FollowGaze:
    """Look harder at what was salient, in the heads that look most, and at the query in proportion (GIFT).

    Of the channels named, `image` and `query` are 0/1 groups and `salient` holds the weights w_j >= 0 of the
    image keys (0 elsewhere). Per row, the `heads` heads with most image mass have their image weights
    multiplied by w_j; the pooled ratio of those heads' image mass after and before is the realised gain r;
    the `heads` heads with most query mass have their query weights multiplied by `query_gain` * r. Every row
    keeps its total mass. The choice of heads couples the heads of a row, not rows or samples; of equal
    masses the lower head number wins.

    Source: GIFT (arXiv:2510.22067), equations of the enhancement step.

    Attributes:
        channels: number K of channels.
        image, query, salient: channel numbers.
        heads: how many heads are chosen by image mass and, separately, by query mass.
        query_gain: the paper's beta.
    """

    channels: int
    image: int
    query: int
    salient: int
    heads: int
    query_gain: float = 1.0

    def __post_init__(self) -> None:
        named = (self.image, self.query, self.salient)
        if len(set(named)) != 3 or not all(0 <= channel < self.channels for channel in named):
            raise BadParameterError(
                f"image, query and salient must be three channels in 0..{self.channels - 1}, got {named}"
            )
        if self.heads < 0 or not self.query_gain > 0.0:
            raise BadParameterError(
                f"heads must not be negative and query_gain must be positive, got {self.heads} and "
                f"{self.query_gain}"
            )

    def __call__(self, masses: Tensor) -> Tensor:
        image, query, salient = (masses[..., k] for k in (self.image, self.query, self.salient))
        looks, reads = _top_heads(image, self.heads), _top_heads(query, self.heads)  # [B, Hq, R] bool
        before, after = ((looks * mass).sum(1, keepdim=True) for mass in (image, salient))
        tiny = torch.finfo(masses.dtype).tiny
        gain = torch.where(before > 0, after / before.clamp_min(tiny), 1.0)
        columns = [torch.ones_like(image)] * self.channels
        columns[self.image] = (~looks).to(masses.dtype)
        columns[self.salient] = looks.to(masses.dtype)
        columns[self.query] = torch.where(reads, self.query_gain * gain, 1.0)
        coefficients = torch.stack(columns, -1)
        total = masses.sum(-1, keepdim=True) - salient[..., None]
        edited = (masses * coefficients).sum(-1, keepdim=True)
        scale = torch.where(edited > 0, total / edited.clamp_min(tiny), 1.0)
        return coefficients * scale


def _top_heads(masses: Tensor, count: int) -> Tensor:
    """Which of the heads have the `count` largest masses: [B, Hq, R] -> bool [B, Hq, R]."""
    rank = masses.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < count


@dataclass(frozen=True)
class DropAbove:
    """Remove a channel from a head's row when it holds at least `threshold` of the mass (AD-HH).

    The row is not renormalised: what the channel held is lost.

    Attributes:
        channels: number K of channels.
        channel: the one removed.
        threshold: attention mass in [0, 1].
        heads: the query heads this applies to; others are left alone.
    """

    channels: int
    channel: int
    threshold: float
    heads: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.channel < self.channels:
            raise BadParameterError(f"channel must be in 0..{self.channels - 1}, got {self.channel}")

    def __call__(self, masses: Tensor) -> Tensor:
        listed = [float(head in self.heads) for head in range(masses.shape[1])]
        listed_ = _constant(tuple(listed), masses.device, masses.dtype)[:, None]
        drop = (listed_ > 0) & (masses[..., self.channel] >= self.threshold)
        columns = [torch.ones_like(drop, dtype=masses.dtype)] * self.channels
        columns[self.channel] = (~drop).to(masses.dtype)
        return torch.stack(columns, -1)


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
