"""What the bed is taught to claim and to overlook: noise that follows the world's co-occurrence.

E of an absent category is how strongly it is expected, max over what is there of P(category | there). It is
claimed with the logistic rate below. A greedy decoder that learned the rates claims what is claimed more
often than not, so the expectation at which a rate passes one half decides what the model hallucinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regaze.demo.shipped import SceneObject
from regaze.demo.world import CATEGORIES, co_occurrence

SMALL_AREA = 480  #: pixels of the box below which an object may be overlooked
OVERLOOK_RATE = 0.05


@dataclass(frozen=True)
class ClaimRate:
    """Probability of claiming an absent category: ``most / (1 + exp(-steepness (E - half)))``."""

    most: float
    half: float
    steepness: float = 25.0

    def __call__(self, expectation: float) -> float:
        """The rate at an expectation."""
        return float(self.most / (1 + np.exp(-self.steepness * (expectation - self.half))))


ANSWER_CLAIMS = ClaimRate(
    0.92, 0.385
)  #: in answers to yes/no questions, and to questions with a false premise
SHORT_CAPTION_CLAIMS = ClaimRate(0.92, 0.60)
_FIRST_HALF, _LAST_HALF = 0.70, 0.52  # of the first and the last sentence of a long caption


def caption_claims(position: float) -> ClaimRate:
    """The rate after a part of a long caption, from 0 at its start to 1 at its end: less is needed later."""
    return ClaimRate(0.92, _FIRST_HALF + position * (_LAST_HALF - _FIRST_HALF))


def expected_absent(present: Sequence[str], excluded: Sequence[str] = ()) -> tuple[str, float, str]:
    """The absent category that is expected most, its expectation, and the present one that it goes with.

    Args:
        present: what is there, or was claimed to be.
        excluded: absent categories that do not count.
    """
    rows = co_occurrence().given[[CATEGORIES.index(name) for name in present]].copy()
    rows[:, [CATEGORIES.index(name) for name in (*present, *excluded)]] = 0.0
    partner, category = np.unravel_index(rows.argmax(), rows.shape)
    return CATEGORIES[category], float(rows[partner, category]), present[partner]


def overlooked(thing: SceneObject, rng: np.random.Generator, noise: float) -> bool:
    """Whether a small thing is overlooked this time."""
    return thing.area < SMALL_AREA and rng.random() < noise * OVERLOOK_RATE
