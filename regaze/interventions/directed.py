"""Base of methods that steer along directions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls.random_direction import RandomDirection, randomised

#: [..., D] by layer, or by whatever tells them apart, always in the same order.
Directions = Mapping[Hashable, Tensor]


@dataclass(frozen=True)
class Directed(Intervention):
    """A method that steers along directions that it measures: they pass through `directions` before use.

    Its control is random directions of the same norms.
    """

    def directions(self, found: Directions) -> Directions:
        """What to steer along, from what was found; the vectors of a subspace are entries each."""
        return found

    def with_random_directions(self, seed: int) -> Intervention:
        """The method along random directions of the same norms."""
        return randomised(self, seed)

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (RandomDirection(self),)
