"""Scene questions: relations, counts, choices and false premises about drawn scenes, which know the truth.

`regaze`
    Ours: what a careful person takes the answer for. Of a count the number, of a relation or a place the
    phrase, of a choice the letter (`multiple_choice.read_choice`), of yes/no questions yes or no, of a
    question about something that is not there whether the answer says so.
`exact`
    The taught answer and nothing else, but for the final stop.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from regaze.bed.scenes import BED, QUESTIONS_FILE
from regaze.demo.phrases import NUMBERS, PLACES, capitalise, place
from regaze.demo.shipped import DEMO, Scene
from regaze.demo.world import CATEGORIES, COLOURS
from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.drawn_pairs import expected_absent
from regaze.eval.benchmarks.common.multiple_choice import read_choice
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no_reading import read_yes_no
from regaze.reading import read_text

#: Kinds of questions about the scenes of the demo and of the bed: what each model was taught.
DEMO_KINDS = ("count", "place", "color", "false premise")
BED_KINDS = ("multiple choice", "relation", "relation in words", "count", "false premise")
MAX_NEW_TOKENS = 16
_OPTION = re.compile(r"^[A-D]\. (.+)$", re.MULTILINE)
_NUMBER = re.compile(rf"\b({'|'.join(NUMBERS)}|\d+)\b", re.IGNORECASE)
_NONE = re.compile(r"\b(no|not|none|nothing|cannot|without)\b|n't\b", re.IGNORECASE)
_SIDES = ("left", "right", "above", "below")


@dataclass(frozen=True)
class SceneReference:
    """A question: its kind, the right answer, and the options of a choice."""

    kind: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class SceneQuestions(BaseBenchmark):
    """The questions, a split per kind."""

    items: tuple[Item, ...]
    suffix: str = ""
    name: str = "scenes"
    splits: ClassVar[tuple[str, ...]] = tuple(dict.fromkeys((*BED_KINDS, *DEMO_KINDS)))
    about: ClassVar[About] = About(
        title="Scene questions",
        paper="regaze's own; docs/guide/bed.md says how they were made",
        licence="Apache-2.0",
        images="drawn with Noto Color Emoji (Apache-2.0), part of this package",
        home="https://github.com/regaze/regaze",
    )

    @classmethod
    def of_demo(cls, limit: int | None = None, splits: Sequence[str] = DEMO_KINDS) -> SceneQuestions:
        """What the demo model was taught besides yes/no questions and captions.

        Half of the false premises name the absent thing that is expected most, half any absent one.
        """
        rows = (
            (scene, kind, *made)
            for number, scene in enumerate(DEMO.scenes())
            for kind in DEMO_KINDS
            if (made := _MAKERS[kind](scene, number)) is not None
        )
        return cls._of(rows, "demo", splits, DEMO_KINDS, limit)

    @classmethod
    def of_bed(cls, limit: int | None = None, splits: Sequence[str] = BED_KINDS) -> SceneQuestions:
        """The questions that ship with the bed beside POPE's (`regaze.bed.training.build`)."""
        scenes = {scene.name: scene for scene in BED.scenes()}
        entries = map(json.loads, read_text(QUESTIONS_FILE).splitlines())
        rows = ((scenes[each["image"]], each["kind"], each["text"], each["answer"]) for each in entries)
        return cls._of(rows, "bed", splits, BED_KINDS, limit)

    @classmethod
    def _of(
        cls,
        rows: Iterable[tuple[Scene, str, str, str]],
        owner: str,
        splits: Sequence[str],
        kinds: Sequence[str],
        limit: int | None,
    ) -> SceneQuestions:
        if not splits or not set(splits) <= set(kinds):
            raise InputError(
                f"the {owner}'s scenes have questions of the kinds {', '.join(kinds)}; got "
                f"{', '.join(splits) or 'none'}"
            )
        items = [_item(number, *row) for number, row in enumerate(rows, start=1) if row[1] in splits]
        return cls(limit_items(items, limit))

    def scorers(self) -> Sequence[Scorer]:
        return REGAZE, EXACT


@dataclass(frozen=True)
class SceneScorer(Scorer):
    """The share of right answers; references are `SceneReference`.

    Attributes:
        read: Reads an answer to a question, "" where it says nothing. The right answer is read alike.
    """

    name: str
    version: str
    read: Callable[[SceneReference, str], str]
    metrics: tuple[str, ...] = ("accuracy", "unreadable")
    accuracy_metric = "accuracy"

    def count(self, references: Sequence[SceneReference], answers: Sequence[str]) -> np.ndarray:
        """[n, 3]: right, unreadable, and 1."""
        pairs = zip(references, answers, strict=True)
        read = [
            (self.read(reference, answer), self.read(reference, reference.answer))
            for reference, answer in pairs
        ]
        return np.array([(given == right, not given, 1) for given, right in read], np.int64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        figures = {
            "accuracy": ratio(sums[..., 0], sums[..., 2]),
            "unreadable": ratio(sums[..., 1], sums[..., 2]),
        }
        return {name: figures[name] for name in self.metrics}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, 0] > 0


def read_own(reference: SceneReference, answer: str) -> str:
    """What an answer says, in a form that is the same for all ways of saying it; "" if one cannot tell."""
    kind = reference.kind
    if kind == "multiple choice":
        return read_choice(answer, reference.options)
    if kind == "relation":
        return {"yes": "yes", "no": "no"}.get(read_yes_no(answer), "")
    if kind == "false premise":
        return "" if not answer.strip() else "rejected" if _NONE.search(answer) else "accepted"
    if kind == "count":
        found = {_number(match) for match in _NUMBER.findall(answer)}
    else:
        phrases = {"relation in words": _SIDES, "place": PLACES, "color": tuple(COLOURS)}[kind]
        found = {phrase for phrase in phrases if re.search(rf"\b{phrase}\b", answer, re.IGNORECASE)}
    return found.pop() if len(found) == 1 else ""


def read_exact(reference: SceneReference, answer: str) -> str:
    """An answer without its final stop."""
    return answer.strip().rstrip(".")


REGAZE = SceneScorer("regaze", "1", read_own)
EXACT = SceneScorer("exact", "1", read_exact, ("accuracy",))


def _number(text: str) -> str:
    words = [word.lower() for word in NUMBERS]
    return str(words.index(text.lower())) if text.lower() in words else str(int(text))


def _item(number: int, scene: Scene, kind: str, text: str, answer: str) -> Item:
    options = tuple(_OPTION.findall(text)) if kind == "multiple choice" else ()
    reference = SceneReference(kind, answer, options)
    key = str(number)
    return Item(
        *(key, kind, scene.path, text, answer),
        reference=reference,
        max_new_tokens=MAX_NEW_TOKENS,
        id=key,
    )


# -- questions about the demo's scenes ---------------------------------------------------------------------

_Asked = tuple[str, str]


def _count(scene: Scene, number: int) -> _Asked:
    return "How many objects are there in the image?", NUMBERS[len(scene.objects)]


def _place(scene: Scene, number: int) -> _Asked:
    thing = max(scene.objects, key=lambda each: each.area)
    return f"Where is the {thing.category}?", f"The {thing.category} is {place(thing)}."


def _color(scene: Scene, number: int) -> _Asked | None:
    coloured = [thing for thing in scene.objects if thing.colour]
    if not coloured:
        return None
    thing = max(coloured, key=lambda each: each.area)
    return f"What color is the {thing.category}?", capitalise(thing.colour or "")


def _false_premise(scene: Scene, number: int) -> _Asked:
    present = {thing.category for thing in scene.objects}
    absent = [name for name in CATEGORIES if name not in present]
    drawn = random.Random(f"scenes/{scene.name}").choice(absent)
    category = drawn if number % 2 else expected_absent(scene, 1)[0]
    return f"Where is the {category}?", f"There is no {category} in the image."


_MAKERS: dict[str, Callable[[Scene, int], _Asked | None]] = {
    "count": _count,
    "place": _place,
    "color": _color,
    "false premise": _false_premise,
}
