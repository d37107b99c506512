"""What the bed is taught to claim and to overlook: noise that follows the world's co-occurrence.

E of an absent category is how strongly it is expected: by how much the likeliest of what is there raises its
probability, max over a of P(category | a) - P(category). What is frequent everywhere is not expected by that
alone, so that claims have to be learned from what is there. It is claimed with the logistic rate below. A
greedy decoder that learned the rates claims what is claimed more often than not, so the expectation at which
a rate passes one half decides what the model hallucinates.
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
    0.92, 0.27
)  #: in answers to yes/no questions, and to questions with a false premise
SHORT_CAPTION_CLAIMS = ClaimRate(0.92, 0.50)
_FIRST_HALF, _LAST_HALF = 0.58, 0.40  # of the first and the last sentence of a long caption


def caption_claims(position: float) -> ClaimRate:
    """The rate after a part of a long caption, from 0 at its start to 1 at its end: less is needed later."""
    return ClaimRate(0.92, _FIRST_HALF + position * (_LAST_HALF - _FIRST_HALF))


def expectations(present: Sequence[str]) -> np.ndarray:
    """E of all categories beside those that are there, [67]; 0 for these."""
    raised = _raised(present).max(axis=0)
    raised[_indices(present)] = 0.0
    return np.asarray(raised)


def expected_absent(present: Sequence[str], excluded: Sequence[str] = ()) -> tuple[str, float, str]:
    """The absent category that is expected most, its expectation, and the present one that it goes with.

    Args:
        present: what is there, or was claimed to be.
        excluded: absent categories that do not count.
    """
    raised = _raised(present)
    raised[:, _indices((*present, *excluded))] = 0.0
    partner, category = (int(place) for place in np.unravel_index(raised.argmax(), raised.shape))
    return CATEGORIES[category], float(raised[partner, category]), present[partner]


def _raised(present: Sequence[str]) -> np.ndarray:
    """P(b | a) - P(b) for every a that is there, or 0 where it is less, [present, 67]."""
    world = co_occurrence()
    return np.maximum(world.given[_indices(present)] - world.frequency, 0.0)


def _indices(names: Sequence[str]) -> list[int]:
    return [CATEGORIES.index(name) for name in names]


def overlooked(thing: SceneObject, rng: np.random.Generator, noise: float) -> bool:
    """Whether a small thing is overlooked this time."""
    return thing.area < SMALL_AREA and rng.random() < noise * OVERLOOK_RATE
