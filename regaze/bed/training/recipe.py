"""What the shipped bed was trained with."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """Conversations of one stage of the adapter's training.

    Attributes:
        conversations: their number, four to a step.
        learning_rate: the peak; it rises over the first steps, and falls to `decay_to` of it over the last
            two fifths.
        noise: scale of the labels' noise (`regaze.bed.training.noise`).
    """

    conversations: int
    learning_rate: float
    noise: float = 1.0
    decay_to: float = 0.05


@dataclass(frozen=True)
class Recipe:
    """The defaults trained the shipped bed.

    Attributes:
        sight_steps: of tower and projector.
        rank, alpha: of the adapter.
        attention_from: first layer whose attention has an adapter.
        mlp_from: first layer whose MLP has one.
        stages: of the adapter's training.
        own_words: texts that SmolLM2 writes, on one of which each step holds the adapter to it.
        hold: weight of the divergence from SmolLM2 on that text.
    """

    sight_steps: int = 700
    rank: int = 16
    alpha: int = 32
    attention_from: int = 0
    mlp_from: int = 15
    stages: tuple[Stage, ...] = (Stage(920, 1e-3, noise=0.0, decay_to=0.6), Stage(1280, 7e-4))
    own_words: int = 128
    hold: float = 2.0

    def scaled(self, factor: float) -> Recipe:
        """The same recipe with ``factor`` times the steps, at least two of each."""
        stages = tuple(
            replace(stage, conversations=max(8, round(stage.conversations * factor / 8) * 8))
            for stage in self.stages
        )
        return replace(
            self,
            sight_steps=max(2, round(self.sight_steps * factor)),
            stages=stages,
            own_words=max(2, round(self.own_words * factor)),
        )
