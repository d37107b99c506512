"""The policy of SPIN: heads with little mass on a channel are damped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regaze.errors import BadParameterError


@dataclass(frozen=True)
class DampLowHeads:
    """Multiply all weights of a head by `factor`, unless it is among the `kept` with most of a channel.

    Nothing is renormalised. Of equal heads the lower ones are kept; a row in which no head has any of the
    channel is left alone.

    Attributes:
        channels: number K of channels.
        channel: the one whose mass ranks the heads.
        kept: how many heads of a row stay as they are.
        factor: of the others.
    """

    channels: int
    channel: int
    kept: int
    factor: float

    def __post_init__(self) -> None:
        if not 0 <= self.channel < self.channels:
            raise BadParameterError(f"channel must be in 0..{self.channels - 1}, got {self.channel}")

    def __call__(self, masses: Tensor) -> Tensor:
        mass = masses[..., self.channel]  # [B, Hq, R]
        rank = mass.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        stays = (rank < self.kept) | (mass.sum(1, keepdim=True) == 0)
        return torch.where(stays, 1.0, self.factor).to(masses.dtype)[..., None].expand_as(masses)
