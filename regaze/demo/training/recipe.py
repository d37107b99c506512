"""What the shipped model was trained with: steps, learning rates and the kinds of conversations per stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

STAGES = ("vision", "projector", "language", "mix", "describe")


@dataclass(frozen=True)
class DataMix:
    """What the conversations of a stage are like.

    Attributes:
        noise: scale of the label noise (see `regaze.demo.training.conversations`).
        captions: share of the turns that are descriptions.
        existence: share of the turns that are yes/no questions; the rest ask for places, colours, counts.
        text_only: share of the conversations without their image, which teach the prior over answers.
        system: share of the conversations that open with the system message.
        turns: fewest and most questions per scene.
    """

    noise: float
    captions: float
    existence: float
    text_only: float = 0.0
    system: float = 0.1
    turns: tuple[int, int] = (4, 7)


@dataclass(frozen=True)
class Stage:
    """Steps, scenes per step and peak learning rate of a stage.

    Attributes:
        decay_to: the learning rate falls to this fraction of its peak.
        data: the conversations of the three stages that train on text.
    """

    steps: int
    scenes: int
    learning_rate: float
    decay_to: float = 0.0
    data: DataMix | None = None


@dataclass(frozen=True)
class Recipe:
    """The stages in order; the defaults trained the shipped model.

    Attributes:
        slow_learning_rate: of tower, projector and word embeddings in the last two stages.
        layers: of the language model.
    """

    vision: Stage = Stage(steps=1700, scenes=64, learning_rate=1.5e-3)
    projector: Stage = Stage(steps=700, scenes=64, learning_rate=3e-3)
    language: Stage = Stage(
        600, 16, 1e-3, decay_to=0.5, data=DataMix(noise=0.0, captions=0.1, existence=0.65)
    )
    mix: Stage = Stage(1150, 32, 1e-3, data=DataMix(noise=1.0, captions=0.3, existence=0.45, text_only=0.06))
    describe: Stage = Stage(
        350, 16, 6e-4, data=DataMix(noise=1.3, captions=0.6, existence=0.25, text_only=0.06)
    )
    slow_learning_rate: float = 1e-4
    layers: int = 6

    def stage(self, name: str) -> Stage:
        """The stage called ``name``, one of `STAGES`."""
        stage: Stage = getattr(self, name)
        return stage

    def scaled(self, factor: float) -> Recipe:
        """The same recipe with ``factor`` times the steps, at least two per stage."""
        shorter: dict[str, Any] = {}
        for name in STAGES:
            stage = self.stage(name)
            shorter[name] = replace(stage, steps=max(2, round(stage.steps * factor)))
        return replace(self, **shorter)
