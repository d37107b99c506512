"""The policy of AD-HH: a channel that holds too much of a head's row is removed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.kernels import NumbaPart, TritonPart, pad_channels
from regaze.kernels.policies import constant


@dataclass(frozen=True)
class DropHeavyChannel:
    """Remove a channel from a head's row when it holds at least `threshold` of the mass.

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
        listed = constant(self._listed(masses.shape[1]), masses.device, masses.dtype)[:, None]
        drop = (listed > 0) & (masses[..., self.channel] >= self.threshold)
        columns = [torch.ones_like(drop, dtype=masses.dtype)] * self.channels
        columns[self.channel] = (~drop).to(masses.dtype)
        return torch.stack(columns, -1)

    def triton_part(self, heads: int) -> TritonPart:
        dropped = pad_channels([float(k == self.channel) for k in range(self.channels)])
        return TritonPart(
            "regaze.interventions.adhh.policy_triton:drop_heavy_channel",
            (*dropped, self.threshold, *self._listed(heads)),
        )

    def numba_part(self) -> NumbaPart:
        numbers = (float(self.channel), self.threshold, float(len(self.heads)), *map(float, self.heads))
        return NumbaPart("regaze.interventions.adhh.policy_numba:drop_heavy_channel", numbers)

    def _listed(self, heads: int) -> tuple[float, ...]:
        """1 for each listed query head, 0 for the others."""
        return tuple(float(head in self.heads) for head in range(heads))
