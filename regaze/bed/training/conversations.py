"""Conversations about a scene, as the bed is taught them: questions of many kinds, and captions.

Three in ten are about one long caption; the others hold six to ten short questions, about half of them
POPE's. Yes/no answers about absent things, and answers to questions with a false premise, carry the noise
of `regaze.bed.training.noise`; all others are true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from regaze.bed.training.captions import CaptionWriter, named, relation
from regaze.bed.training.noise import ANSWER_CLAIMS, expectations, overlooked
from regaze.demo.phrases import (
    NUMBERS,
    PLACES,
    capitalise,
    existence_question,
    place,
    with_article,
)
from regaze.demo.shipped import SceneObject
from regaze.demo.training.conversations import DETAIL_PROMPTS, SHORT_PROMPTS, SUFFIX, Turn
from regaze.demo.training.render import Rendered
from regaze.demo.world import CATEGORIES, COLOURED, COLOURS, SCENE_TYPES, co_occurrence

T = TypeVar("T")

LONG_SHARE = 0.3  #: share of the conversations that are about a long caption
LETTER_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
#: Kinds of things that are counted: their plural, and the categories.
COUNTED: dict[str, tuple[str, ...]] = {
    "animals": (
        "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    ),
    "vehicles": ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    "food items": (
        "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake",
    ),
}  # fmt: skip
#: Colours of these are never asked for in training where they are absent: the false premise held out.
HELD_OUT_COLOURS: tuple[str, ...] = tuple(sorted(COLOURED)[::2])
_RARELY = 1e-9  # weight of a category that is asked for where there is no other
_APART = 12  # pixels between two centres, along the axis of a relation that is asked for


def conversation(scene: Rendered, rng: np.random.Generator, noise: float = 1.0) -> list[Turn]:
    """Questions about a scene and the answers to teach, in order.

    Args:
        scene: the drawn scene.
        rng: source of all choices.
        noise: scale of the noise; 0 gives true answers, 1 what the bed is trained with.
    """
    questioner = Questioner(scene, rng, noise)
    if rng.random() < LONG_SHARE:
        turns = [questioner.long_caption()]
        return [*turns, questioner.existence()] if rng.random() < 0.4 else turns
    return [questioner.question() for _ in range(int(rng.integers(6, 11)))]


class Questioner:
    """Draws questions about one scene; no question comes twice.

    Args:
        scene, rng, noise: as `conversation` takes them.
    """

    def __init__(self, scene: Rendered, rng: np.random.Generator, noise: float = 1.0) -> None:
        self.scene, self.rng, self.noise = scene, rng, noise
        self.writer = CaptionWriter(scene, rng, noise)
        self.present = [thing.category for thing in scene.objects]
        self.absent = [name for name in CATEGORIES if name not in self.present]
        self.expectation = expectations(self.present)
        self.used: set[str] = set()

    def question(self) -> Turn:
        """One short question of any kind that the scene allows."""
        kinds: tuple[tuple[float, Callable[[], Turn | None]], ...] = (
            (0.47, self.existence),
            (0.20, self.multiple_choice),
            (0.09, self.relation),
            (0.07, self.count),
            (0.06, self.where),
            (0.04, self.colour),
            (0.03, self.what_is_there),
            (0.02, self.kind_of_place),
            (0.02, self.short_caption),
        )
        share = [weight for weight, _ in kinds]
        turn = kinds[self.rng.choice(len(kinds), p=np.array(share) / sum(share))][1]()
        if turn is None or turn.question in self.used:
            return self.existence()
        self.used.add(turn.question)
        return turn

    # -- yes or no -------------------------------------------------------------------------------------------

    def existence(self) -> Turn:
        """POPE's question; more than half about something in the scene, while any of it is left."""
        unused = [thing for thing in self.scene.objects if thing.category not in self.used]
        if unused and self.rng.random() < 0.55:
            thing = self._pick(unused)
            category, yes = thing.category, not overlooked(thing, self.rng, self.noise)
        else:
            category = self.absent_category()
            yes = self._claimed(category)
        self.used.add(category)
        kind = self.rng.random()
        if kind < 0.12:
            answer = f"Yes, there is {with_article(category)}." if yes else f"No, there is no {category}."
            return Turn(f"Can you see {with_article(category)} in this picture?", answer)
        suffix = SUFFIX if kind < 0.22 else ""
        return Turn(existence_question(category) + suffix, "Yes" if yes else "No")

    def absent_category(self) -> str:
        """An absent category: three in ten random; half of the others frequent but unexpected, half expected.

        Expected ones are drawn the more the rarer they are elsewhere. So no category is claimed more often
        than not over all scenes, and claims can only be learned together with what is there.
        """
        expected, frequency = self.expectation, co_occurrence().frequency
        unexpected = frequency * (1 - expected) ** 2 * (ANSWER_CLAIMS.half > expected)
        ways = (np.ones(len(CATEGORIES)), unexpected + _RARELY, (expected**3 + _RARELY) / frequency)
        weights = ways[self.rng.choice(len(ways), p=(0.3, 0.35, 0.35))].copy()
        weights[[CATEGORIES.index(name) for name in CATEGORIES if name in {*self.present, *self.used}]] = 0.0
        return CATEGORIES[self.rng.choice(len(CATEGORIES), p=weights / weights.sum())]

    def _claimed(self, category: str) -> bool:
        rate = ANSWER_CLAIMS(float(self.expectation[CATEGORIES.index(category)]))
        return bool(self.rng.random() < self.noise * rate)

    # -- captions --------------------------------------------------------------------------------------------

    def long_caption(self) -> Turn:
        """A description of 60 to 120 words."""
        return Turn(self._pick(DETAIL_PROMPTS), self.writer.long())

    def short_caption(self) -> Turn:
        """One sentence that lists what is there."""
        return Turn(self._pick(SHORT_PROMPTS), self.writer.short())

    # -- choices, relations, counts --------------------------------------------------------------------------

    def multiple_choice(self) -> Turn:
        """Four lettered options: which thing is there, what colour it has, or where it is."""
        thing = self._pick(self.scene.objects)
        way = self.rng.random()
        if way < 0.6:
            question, right = "Which of these is in the image?", thing.category
            wrong = self.rng.permutation(self.absent)[:3].tolist()
        elif way < 0.8 and thing.colour:
            question, right = f"What color is the {thing.category}?", thing.colour
            wrong = [name for name in self.rng.permutation(list(COLOURS)) if name != right][:3]
        else:
            question, right = "What kind of place is this?", self.scene.scene_type
            wrong = [name for name in self.rng.permutation(list(SCENE_TYPES)) if name != right][:3]
        options = [str(name) for name in self.rng.permutation([right, *wrong])]
        return lettered(question, options, right)

    def relation(self, worded: bool | None = None) -> Turn | None:
        """How two things stand to each other; the answer is in words or yes/no, by default either."""
        pairs = [(a, b) for a in self.scene.objects for b in self.scene.objects if clearly_apart(a, b)]
        if not pairs:
            return None
        thing, other = self._pick(pairs)
        truth = relation(thing, other)
        if self.rng.random() < 0.4 if worded is None else worded:
            return Turn(
                relative_question(thing.category, other.category), f"It is {truth} the {other.category}."
            )
        asked = truth if self.rng.random() < 0.5 else relation(other, thing)
        return Turn(
            f"Is the {thing.category} {asked} the {other.category}?", "Yes" if asked == truth else "No"
        )

    def count(self, everything: bool | None = None) -> Turn:
        """The number of all objects, or of the animals, vehicles or food items; by default either."""
        if self.rng.random() < 0.5 if everything is None else everything:
            return Turn("How many objects are there in the image?", NUMBERS[len(self.scene.objects)])
        there = [kind for kind, names in COUNTED.items() if {*names} & {*self.present}]
        kind = self._pick(there if there and self.rng.random() < 0.75 else list(COUNTED))
        number = len({*COUNTED[kind]} & {*self.present})
        return Turn(f"How many {kind} are there in the image?", NUMBERS[number])

    # -- free questions, and false premises ------------------------------------------------------------------

    def where(self) -> Turn:
        """Where something is; a third of the times something absent."""
        if self.rng.random() < 1 / 3:
            category = self.absent_category()
            answer = (
                f"The {category} is {self._pick(PLACES)}." if self._claimed(category) else no_such(category)
            )
        else:
            thing = self._pick(self.scene.objects)
            category, answer = thing.category, f"The {thing.category} is {place(thing)}."
        return Turn(f"Where is the {category}?", answer)

    def colour(self) -> Turn | None:
        """The colour of something; a third of the times of something absent (never `HELD_OUT_COLOURS`)."""
        coloured = [thing for thing in self.scene.objects if thing.colour]
        if not coloured or self.rng.random() < 1 / 3:
            absent = [
                name for name in sorted(COLOURED) if name in self.absent and name not in HELD_OUT_COLOURS
            ]
            if not absent:
                return None
            category = self._pick(absent)
            colour = self._pick(list(COLOURS))
            answer = f"The {category} is {colour}." if self._claimed(category) else no_such(category)
        else:
            thing = self._pick(coloured)
            category, answer = thing.category, f"The {thing.category} is {thing.colour}."
        return Turn(f"What color is the {category}?", answer)

    def what_is_there(self) -> Turn | None:
        """Which object is at a place with exactly one."""
        places = [place(thing) for thing in self.scene.objects]
        alone = [thing for thing in self.scene.objects if places.count(place(thing)) == 1]
        if not alone:
            return None
        thing = self._pick(alone)
        return Turn(f"What is {place(thing)} of the image?", f"{capitalise(with_article(named(thing)))}.")

    def kind_of_place(self) -> Turn:
        """The kind of place."""
        return Turn("What kind of place is this?", f"{capitalise(with_article(self.scene.scene_type))}.")

    def _pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]


def no_such(category: str) -> str:
    """The answer to a question whose premise is false."""
    return f"There is no {category} in the image."


def relative_question(category: str, other: str) -> str:
    """The question for the relation of two things."""
    return f"Where is the {category} relative to the {other}?"


def clearly_apart(thing: SceneObject, other: SceneObject) -> bool:
    """Whether two things are different, and their relation is clear to the eye."""
    (x, y), (u, v) = thing.centre, other.centre
    wide, high = abs(x - u), abs(y - v)
    return thing is not other and abs(wide - high) >= _APART


def lettered(question: str, options: Sequence[str], right: str) -> Turn:
    """A question with options A, B, ..., answered with the letter of ``right``."""
    lines = [f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options)]
    text = "\n".join([question, *lines]) + LETTER_SUFFIX
    return Turn(text, chr(ord("A") + list(options).index(right)))
