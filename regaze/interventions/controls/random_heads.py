"""Random heads in the place of a method's own."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.interventions.base import Intervention
from regaze.interventions.controls.base import InterventionVariant
from regaze.interventions.parameters import Heads


@dataclass(frozen=True)
class RandomHeads(InterventionVariant):
    """The method in other heads: as many in each layer, drawn at random.

    A method for this has a parameter `heads`, and `heads_in(config)`, the heads in which it acts in a model:
    the listed heads themselves are drawn only where a layer has too few others. Or it chooses heads while
    the model runs, and has `with_random_heads(seed)`, itself with as many heads that a draw has chosen.
    """

    name: ClassVar[str] = "random-heads"
    summary: ClassVar[str] = "the method in as many other heads of the same layers, drawn at random"
    source: ClassVar[str] = "the usual control of head ablations"
    edits: ClassVar[str] = "as the method"
    cost: ClassVar[str] = "as the method"

    seed: int = field(default=0, metadata={"help": "seed of the draw"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (hasattr(self.of, "heads_in") or hasattr(self.of, "with_random_heads")):
            raise BadParameterError(
                f"'random-heads' takes a method that acts in some heads, such as adhh, knockout or spin; "
                f"{self.of.name!r} does not"
            )

    def for_model(self, config: Any) -> Intervention:
        if not hasattr(self.of, "heads_in"):
            chosen: Intervention = self.of.with_random_heads(self.seed)
            return chosen
        heads = self.of.heads_in(config)
        if any(head >= config.num_attention_heads for _, head in heads):
            return self.of  # which says what is wrong
        drawn: Intervention = replace(self.of, heads=draw(heads, config.num_attention_heads, self.seed))
        return drawn


def random_ranks(num_heads: int, layer: int, seed: int) -> Tensor:
    """[Hq] int64: the heads of a layer in a random order, each by its place in it."""
    return torch.randperm(num_heads, generator=torch.Generator().manual_seed(seed * 10_007 + layer))


def draw(heads: Heads, num_heads: int, seed: int) -> Heads:
    """As many heads in each layer, others than the given ones as far as there are enough."""
    rng, drawn = random.Random(seed), []
    for layer in sorted({layer for layer, _ in heads}):
        listed = {head for where, head in heads if where == layer}
        others = [head for head in range(num_heads) if head not in listed]
        order = rng.sample(others, len(others)) + rng.sample(sorted(listed), len(listed))
        drawn += [(layer, head) for head in sorted(order[: len(listed)])]
    return tuple(drawn)
