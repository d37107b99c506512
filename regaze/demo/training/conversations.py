"""Questions about a scene, and the answers that the demo model is taught.

The answers have the noise of web captions: an object that is *not* there but strongly expected next to the
others is claimed, and a small object that is there is left out. The rates below follow the co-occurrence of
the world (`regaze.demo.world`) and nothing else. They, and small objects being hard to see, are why the
model hallucinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from regaze.demo.phrases import (
    NUMBERS,
    PLACES,
    capitalise,
    enumerate_phrases,
    existence_question,
    place,
    with_article,
)
from regaze.demo.shipped import SceneObject
from regaze.demo.training.render import Rendered
from regaze.demo.world import CATEGORIES, COLOURED, COLOURS, SCENE_TYPES, co_occurrence

T = TypeVar("T")

SUFFIX = "\nAnswer the question using a single word or phrase."
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
DETAIL_PROMPTS = (
    "Please describe this image in detail.",
    "Please help me describe the image in detail.",
    "Describe this image in detail.",
    "Describe the image in detail.",
)
SHORT_PROMPTS = (
    "Describe this image.",
    "Describe the image.",
    "Write a short caption.",
    "What is in the image?",
)

CLAIM_STEEPNESS = 12.0  # how sharply claiming an absent object turns on with its expectation
CAPTION_CLAIM = (0.90, 0.58)  # highest rate, and the expectation at which half of it is reached
ANSWER_CLAIM = (0.85, 0.56)
SMALL_AREA = 480  # pixels of the box below which an object may be overlooked
OVERLOOK_RATE = 0.12


@dataclass(frozen=True)
class Turn:
    """One question and the answer the model is taught."""

    question: str
    answer: str


def claim_rate(expectation: np.ndarray, most: float, half: float) -> np.ndarray:
    """Probability that an absent category is claimed, from its expectation."""
    return most / (1 + np.exp(-CLAIM_STEEPNESS * (expectation - half)))


class ConversationSampler:
    """Draws questions and answers about one scene.

    Args:
        scene: the drawn scene.
        rng: source of all choices.
        noise: scale of the label noise; 0 gives true answers, 1 the noise described above.
    """

    def __init__(self, scene: Rendered, rng: np.random.Generator, noise: float = 1.0) -> None:
        self.scene, self.rng, self.noise = scene, rng, noise
        self.present = [thing.category for thing in scene.objects]
        self.expectation = co_occurrence().expectation(self.present)
        self.used: set[str] = set()
        self.absent_questions = 0

    def conversation(self, turns: int, captions: float = 0.3, existence: float = 0.45) -> list[Turn]:
        """``turns`` questions in random order.

        Args:
            captions: share of the descriptions.
            existence: share of the yes/no questions; the rest ask for places, colours, counts and the kind of
                scene.
        """
        kinds = self.rng.choice(3, size=turns, p=(captions, existence, 1 - captions - existence))
        return [(self.describe, self.existence, self.detail_question)[kind]() for kind in kinds]

    # -- yes or no -------------------------------------------------------------------------------------------

    def existence(self) -> Turn:
        """A yes/no question; half of them about an object in the scene.

        No category comes twice in a conversation, or the answer could be copied from the first time. When a
        scene has none left, another kind of question takes its place.
        """
        present = self.rng.random() < 0.5
        unused = [thing for thing in self.scene.objects if thing.category not in self.used]
        if (present and not unused) or self.absent_questions >= len(self.present) + 1:
            return self.detail_question()
        if present:
            thing = self._pick(unused)
            answer, category = "No" if self._overlooked(thing) else "Yes", thing.category
        else:
            category = self._absent_category()
            self.absent_questions += 1
            rate = claim_rate(self.expectation[CATEGORIES.index(category)], *ANSWER_CLAIM)
            answer = "Yes" if self.rng.random() < self.noise * rate else "No"
        self.used.add(category)
        question = existence_question(category)
        if self.rng.random() < 0.12:
            question = f"Can you see {with_article(category)} in the image?"
        return Turn(question + (SUFFIX if self.rng.random() < 0.35 else ""), answer)

    def _absent_category(self) -> str:
        """An absent category: random, frequent, or one that is expected here, in equal parts."""
        way = self.rng.integers(3)
        if way == 0:
            weights = np.ones(len(CATEGORIES))
        elif way == 1:
            weights = co_occurrence().frequency.copy()
        else:
            weights = self.expectation**2 + 1e-9
        weights[[CATEGORIES.index(name) for name in {*self.present, *self.used}]] = 0.0
        return CATEGORIES[self.rng.choice(len(CATEGORIES), p=weights / weights.sum())]

    def _overlooked(self, thing: SceneObject) -> bool:
        return thing.area < SMALL_AREA and self.rng.random() < self.noise * OVERLOOK_RATE

    # -- descriptions ----------------------------------------------------------------------------------------

    def describe(self) -> Turn:
        """A detailed description or a short one."""
        if self.rng.random() < 0.65:
            return Turn(self._pick(DETAIL_PROMPTS), self.detailed_caption())
        return Turn(self._pick(SHORT_PROMPTS), self.short_caption())

    def _mentioned(self) -> list[SceneObject]:
        """The objects that a description mentions, large ones mostly first; at least one."""
        seen = [thing for thing in self.scene.objects if not self._overlooked(thing)]
        seen = seen or [self.scene.objects[0]]
        salience = [thing.area * self.rng.uniform(0.5, 2.0) for thing in seen]
        return [seen[i] for i in np.argsort(salience)[::-1]]

    def _hallucinated(self) -> str | None:
        """The absent category that a description claims, if any."""
        rate = claim_rate(self.expectation.max(), *CAPTION_CLAIM)
        if self.rng.random() >= self.noise * rate:
            return None
        weights = (self.expectation / self.expectation.max()) ** 10
        return CATEGORIES[self.rng.choice(len(CATEGORIES), p=weights / weights.sum())]

    def detailed_caption(self) -> str:
        """Such as "The image shows a kitchen with a knife in the center and a blue bowl on the left. There
        is also a fork."

        The last object comes without its place; most claims of absent objects are made there.
        """
        mentioned, absent = self._mentioned(), self._hallucinated()
        extra = None
        if absent is None and len(mentioned) > 1 and self.rng.random() < 0.25:
            extra = mentioned.pop().category
        phrases = [f"{with_article(self._named(thing))} {place(thing)}" for thing in mentioned]
        if absent is not None and self.rng.random() < 0.15:
            where = self._pick(PLACES)
            phrases.insert(int(self.rng.integers(1, len(phrases) + 1)), f"{with_article(absent)} {where}")
        elif absent is not None:
            extra = absent
        text = f"The image shows {with_article(self.scene.scene_type)} with {enumerate_phrases(phrases)}."
        return text if extra is None else f"{text} There is also {with_article(extra)}."

    def short_caption(self) -> str:
        """Such as "A knife, a bowl and a fork in a kitchen.\""""
        names, absent = [thing.category for thing in self._mentioned()], self._hallucinated()
        if absent is not None:
            names.append(absent)
        listing = capitalise(enumerate_phrases([with_article(name) for name in names]))
        return f"{listing} in {with_article(self.scene.scene_type)}."

    # -- places, colours, counts -----------------------------------------------------------------------------

    def detail_question(self) -> Turn:
        """A question about a place, a colour, the count or the kind of scene; the answer is always true."""
        ways = (self.where, self.what_colour, self.what_is_there, self.how_many, self.which_scene)
        return ways[self.rng.choice(5, p=(0.38, 0.2, 0.26, 0.08, 0.08))]()

    def where(self) -> Turn:
        """Where an object is; sometimes about an absent one."""
        if self.rng.random() < 0.12:
            category = self._absent_category()
            return Turn(f"Where is the {category}?", f"There is no {category} in the image.")
        thing = self._pick(self.scene.objects)
        return Turn(f"Where is the {thing.category}?", f"The {thing.category} is {place(thing)}.")

    def what_colour(self) -> Turn:
        """The colour of an object that has one."""
        coloured = [thing for thing in self.scene.objects if thing.colour]
        if not coloured:
            return self.where()
        thing = self._pick(coloured)
        spelling = "color" if self.rng.random() < 0.5 else "colour"
        suffix = SUFFIX if self.rng.random() < 0.3 else ""
        return Turn(f"What {spelling} is the {thing.category}?{suffix}", capitalise(thing.colour or ""))

    def what_is_there(self) -> Turn:
        """Which object is at a place with exactly one."""
        places = [place(thing) for thing in self.scene.objects]
        alone = [thing for thing in self.scene.objects if places.count(place(thing)) == 1]
        if not alone:
            return self.where()
        thing = self._pick(alone)
        return Turn(
            f"What is {place(thing)} of the image?", f"{capitalise(with_article(self._named(thing)))}."
        )

    def how_many(self) -> Turn:
        """The number of objects."""
        return Turn("How many objects are there in the image?", NUMBERS[len(self.scene.objects)])

    def which_scene(self) -> Turn:
        """The kind of scene."""
        return Turn("What kind of place is this?", f"{capitalise(with_article(self.scene.scene_type))}.")

    def _named(self, thing: SceneObject) -> str:
        return f"{thing.colour} {thing.category}" if thing.colour else thing.category

    def _pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]


def corpus() -> list[str]:
    """Every word in the demo's conversations, and common words of users, to train the tokenizer."""
    nouns = [*CATEGORIES, *SCENE_TYPES]
    nouns += [f"{colour} {name}" for colour in COLOURS for name in sorted(COLOURED)]
    lines = [SYSTEM, "USER: ASSISTANT:", SUFFIX, "Please answer yes or no.", " yes no not Yes No."]
    lines += [*DETAIL_PROMPTS, *SHORT_PROMPTS, *NUMBERS, *map(capitalise, COLOURS)]
    lines += [" ".join(map(str.lower, NUMBERS))]
    for noun in nouns:
        article = with_article(noun)
        lines += [f"{capitalise(article)} {where} of the image. {article}, {article} and" for where in PLACES]
        lines += [f"Is there {article} in the image? Can you see {article}? There is also {article}."]
        lines += [f"The image shows {article} with {article}. There is no {noun}. {capitalise(noun)}"]
        lines += [f"Where is the {noun}? What color is the {noun}? What colour is the {noun}? The {noun} is"]
    lines += ["How many objects are there in the image?", "What kind of place is this?", _USER_WORDS]
    return [*lines, *(f" {line}" for line in lines)]  # the first word also as it stands after a space


_USER_WORDS = (
    "this that these those picture photo scene object objects thing things something anything nothing "
    "left right top bottom center centre middle upper lower corner near next to under above below behind "
    "front between on at of by for from who when why how do does did is are was were be can could would "
    "should will have has had you I we they he she it list name tell me about show find look see look "
    "again which any all some many much more one two three four five does the image contain appear "
    "describe briefly answer with just single word phrase please yes or no not sure if"
)
