"""What a greedy decoder would answer that sees everything and has learned the noise of its labels by heart.

It claims what is claimed more often than not, which is the least that greedy decoding can be wrong by
learning better. The rates of `regaze.bed.training.noise` were chosen by these figures, before any training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regaze.bed.training.captions import CaptionWriter
from regaze.bed.training.noise import ANSWER_CLAIMS, ClaimRate, expected_absent
from regaze.demo.phrases import existence_question
from regaze.demo.shipped import Scene, SceneObject
from regaze.demo.world import CATEGORIES, co_occurrence

_ASKED = {existence_question(category): index for index, category in enumerate(CATEGORIES)}


def perfect_answer(scene: Scene, question: str) -> str:
    """Yes or No to POPE's question."""
    present = [thing.category for thing in scene.objects]
    expectation = float(co_occurrence().expectation(present)[_ASKED[question]])
    there = CATEGORIES[_ASKED[question]] in present
    return "Yes" if there or ANSWER_CLAIMS(expectation) > 0.5 else "No"


class _GreedyWriter(CaptionWriter):
    def seen(self) -> list[SceneObject]:
        return sorted(self.scene.objects, key=lambda thing: -thing.area)

    def claim(self, rate: ClaimRate, claimed: Sequence[str]) -> tuple[str, str] | None:
        category, expectation, partner = expected_absent([*self.present, *claimed])
        return (category, partner) if rate(expectation) > 0.5 else None


def perfect_caption(scene: Scene, seed: int = 0) -> str:
    """A long caption; the seed decides between wordings that are equally likely."""
    return _GreedyWriter(scene, np.random.default_rng(seed)).long()
