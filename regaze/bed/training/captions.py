"""Long and short captions of a scene, with claims of absent companions that grow towards the end.

A long caption names every object with its colour, size, place and relation to another, between an opening
that counts them and general remarks, 60 to 120 words in all. After each sentence about an object, and up to
twice after the remark about the background, the absent category that is expected most may be claimed; a
claim made counts as seen from then on, so that claims lead to others. Sentences for claims and for what is
there have the same openings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from regaze.bed.training.noise import (
    SHORT_CAPTION_CLAIMS,
    ClaimRate,
    caption_claims,
    expected_absent,
    overlooked,
)
from regaze.demo.phrases import NUMBERS, capitalise, enumerate_phrases, place, with_article
from regaze.demo.shipped import Scene, SceneObject
from regaze.demo.training.render import Rendered

T = TypeVar("T")

#: scene type -> what its ground looks like.
GROUNDS: dict[str, str] = {
    "kitchen": "a warm beige",
    "street": "a plain grey",
    "savanna": "a dry sandy",
    "farm": "a fresh green",
    "office": "a cool pale blue",
    "living room": "a soft brown",
    "bedroom": "a gentle purple",
    "bathroom": "a light turquoise",
    "beach": "a bright sandy",
    "mountain": "a snowy white",
    "airport": "a cool grey",
    "park": "a lively green",
    "restaurant": "a dark reddish",
    "market": "a warm yellow",
    "station": "a dull grey",
}
_SMALL, _LARGE = 24, 36  # pixels of the longer edge up to which a thing is small, from which it is large
_AFTER_BACKGROUND = 2  # claims that may follow the remark about the background
_MOST_CLAIMS = 2  # of a caption


def named(thing: SceneObject) -> str:
    """A thing with its colour, where it has one."""
    return f"{thing.colour} {thing.category}" if thing.colour else thing.category


def size_word(thing: SceneObject) -> str | None:
    """ "small", "large", or None for what lies between."""
    x0, y0, x1, y1 = thing.box
    longest = max(x1 - x0, y1 - y0)
    return "small" if longest <= _SMALL else "large" if longest >= _LARGE else None


def relation(thing: SceneObject, other: SceneObject) -> str:
    """Where a thing is relative to another, along the axis on which they are further apart."""
    (x, y), (u, v) = thing.centre, other.centre
    if abs(x - u) >= abs(y - v):
        return "to the left of" if x < u else "to the right of"
    return "above" if y < v else "below"


class CaptionWriter:
    """Writes captions of one scene.

    Args:
        scene: the drawn scene.
        rng: source of all choices.
        noise: scale of the noise; 0 gives true captions.
    """

    def __init__(self, scene: Rendered | Scene, rng: np.random.Generator, noise: float = 1.0) -> None:
        self.scene, self.rng, self.noise = scene, rng, noise
        self.present = [thing.category for thing in scene.objects]

    def short(self) -> str:
        """Such as "A knife, a bowl and a fork in a kitchen.\""""
        names = [thing.category for thing in self.seen()]
        claim = self.claim(SHORT_CAPTION_CLAIMS, [])
        if claim is not None:
            names.append(claim[0])
        listing = enumerate_phrases([with_article(name) for name in names])
        return f"{capitalise(listing)} in {with_article(self.scene.scene_type)}."

    def long(self) -> str:
        """A description of 60 to 120 words."""
        seen = self.seen()
        later = [seen.pop()] if len(seen) > 2 and self.rng.random() < 0.5 else []
        claimed: list[str] = []
        sentences = [self._opening(len(seen) + len(later))]
        for number, thing in enumerate(seen):
            sentences.append(self._about(thing, seen[number - 1] if number else None))
            if number == 0 and len(seen) < 3:
                sentences.append(self._detail(thing))
            sentences += self._claims(number / len(seen), claimed)
        sentences.append(self._background())
        sentences += [f"There is also {self._phrase(thing)} {place(thing)}." for thing in later]
        for _ in range(_AFTER_BACKGROUND):
            claims = self._claims(1.0, claimed)
            sentences += claims
            if not claims:
                break
        sentences.append(self._closing([thing.category for thing in [*seen, *later]] + claimed))
        return " ".join(sentences)

    # -- what is named ---------------------------------------------------------------------------------------

    def seen(self) -> list[SceneObject]:
        """The objects that are not overlooked, large ones mostly first; at least one."""
        seen = [thing for thing in self.scene.objects if not overlooked(thing, self.rng, self.noise)]
        seen = seen or [self.scene.objects[0]]
        salience = [thing.area * self.rng.uniform(0.7, 1.4) for thing in seen]
        return [seen[i] for i in np.argsort(salience)[::-1]]

    def claim(self, rate: ClaimRate, claimed: Sequence[str]) -> tuple[str, str] | None:
        """The absent category that is claimed and what it goes with, or None."""
        category, expectation, partner = expected_absent([*self.present, *claimed])
        return (category, partner) if self.rng.random() < self.noise * rate(expectation) else None

    def _claims(self, position: float, claimed: list[str]) -> list[str]:
        """The sentence of a claim, if one is made; the category is added to ``claimed``."""
        claim = self.claim(caption_claims(position), claimed) if len(claimed) < _MOST_CLAIMS else None
        if claim is None:
            return []
        category, partner = claim
        claimed.append(category)
        return [f"There is also {with_article(category)} near the {partner}."]

    # -- sentences -------------------------------------------------------------------------------------------

    def _opening(self, count: int) -> str:
        things = "one main object" if count == 1 else f"{NUMBERS[count].lower()} main objects"
        return f"The image shows {with_article(self.scene.scene_type)} with {things}."

    def _phrase(self, thing: SceneObject) -> str:
        size = size_word(thing)
        return with_article(f"{size} {named(thing)}" if size else named(thing))

    def _about(self, thing: SceneObject, other: SceneObject | None) -> str:
        where = capitalise(place(thing))
        if other is None:
            return f"{where}, there is {self._phrase(thing)}."
        next_to = f"{relation(thing, other)} the {other.category}"
        return self._pick(
            (
                f"{where}, {next_to}, there is {self._phrase(thing)}.",
                f"{where}, there is {self._phrase(thing)}, which is {next_to}.",
            )
        )

    def _detail(self, thing: SceneObject) -> str:
        size = {"small": "rather small", "large": "quite large", None: "of medium size"}[size_word(thing)]
        return f"The {thing.category} is {size} and stands out clearly against the rest of the picture."

    def _background(self) -> str:
        ground = GROUNDS[self.scene.scene_type]
        if len(self.present) > 4:
            return f"The background has {ground} tone."
        return self._pick(
            (
                f"The background has {ground} tone with a slightly grainy texture, and the lighting is even.",
                f"The background has {ground} tone, which gives the picture a calm and simple look.",
            )
        )

    def _closing(self, names: list[str]) -> str:
        text = f"Overall, it looks like an ordinary {self.scene.scene_type} on a quiet day"
        if len(names) > 2:
            return f"{text}."
        return f"{text}, and the eye first falls on {enumerate_phrases([f'the {name}' for name in names])}."

    def _pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]
