"""A random direction in the place of the one that a method steers along."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.interventions.base import Intervention
from regaze.interventions.controls.base import InterventionVariant
from regaze.interventions.controls.variants import with_behaviour


@dataclass(frozen=True)
class RandomDirection(InterventionVariant):
    """The method with random directions of the same norms.

    A step of the same length anywhere: what is left of a method under this is its idea where to go.
    """

    name: ClassVar[str] = "random-direction"
    summary: ClassVar[str] = "the method along random directions of the same norms"
    source: ClassVar[str] = "the usual control of steering"
    edits: ClassVar[str] = "as the method"
    cost: ClassVar[str] = "as the method"

    seed: int = field(default=0, metadata={"help": "seed of the draw"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.of, "with_random_directions"):
            raise BadParameterError(
                f"'random-direction' takes a method that steers along directions, such as vista; "
                f"{self.of.name!r} does not"
            )

    def for_model(self, config: Any) -> Intervention:
        changed: Intervention = self.of.with_random_directions(self.seed)
        return changed


def randomised(method: Intervention, seed: int) -> Intervention:
    """A method whose `directions` gives random ones in the place of what was found."""
    return with_behaviour(method, _Random, direction_seed=seed)


class _Random(Intervention):
    """Replaces the directions of the method beneath."""

    direction_seed: int

    def directions(self, found: Mapping[Hashable, Tensor]) -> Mapping[Hashable, Tensor]:
        beneath: Any = super()
        return random_like(beneath.directions(found), self.direction_seed)


def random_like(directions: Mapping[Hashable, Tensor], seed: int) -> dict[Hashable, Tensor]:
    """A random direction per entry [..., D], in order, with the norms that the entry has along it.

    The rows of an entry, such as the samples of a batch, share a direction, which no other row can change.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for key, direction in directions.items():
        unit = torch.randn(direction.shape[-1], generator=generator)
        unit = (unit / unit.norm()).to(direction.device, non_blocking=True)  # from the host: safe
        drawn[key] = (direction.float().norm(dim=-1, keepdim=True) * unit).to(direction.dtype)
    return drawn
