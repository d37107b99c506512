"""Random image tokens in the place of those that a pruning method keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.interventions.base import Intervention
from regaze.interventions.controls.base import InterventionVariant
from regaze.interventions.controls.variants import with_behaviour
from regaze.toolkit.model.context import Context


@dataclass(frozen=True)
class RandomTokens(InterventionVariant):
    """The method with as many image tokens at each stage, drawn at random.

    A prompt's draw depends on the seed and on its number of image tokens alone. What a method loses by this
    is its idea which tokens matter; that most of them do not, random ones show as well.
    """

    name: ClassVar[str] = "random-tokens"
    summary: ClassVar[str] = "pruning that keeps as many image tokens, drawn at random"
    source: ClassVar[str] = "the usual control of token pruning"
    edits: ClassVar[str] = "as the method"
    cost: ClassVar[str] = "as the method"

    seed: int = field(default=0, metadata={"help": "seed of the draw"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.of, "stages"):
            raise BadParameterError(
                f"'random-tokens' takes a method that removes image tokens, such as fastv; {self.of.name!r} "
                "does not"
            )

    def for_model(self, config: Any) -> Intervention:
        return with_behaviour(self.of, _Random, seed=self.seed)


class _Random(Intervention):
    """Scores that are drawn once per prompt."""

    seed: int

    def scores(self, layer: int, context: Context) -> Tensor:
        state = context.state(self)
        if RandomTokens not in state:
            state[RandomTokens] = random_scores(state["tokens"].columns >= 0, self.seed)
        drawn = state[RandomTokens] = state[RandomTokens].to(context.device)
        return drawn


def random_scores(exist: Tensor, seed: int) -> Tensor:
    """Scores [batch, N] of the image tokens that `exist` [batch, N], the first ones of each row; 0 of others.

    Those of a row follow from the seed and from how many it has.
    """
    drawn = torch.zeros(exist.shape)
    for sample, count in enumerate(exist.sum(1).tolist()):
        drawn[sample, :count] = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return drawn
