"""ROPE's scoring rules; references are `RopeReference`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from regaze.eval.benchmarks.common.final_answer import without_thinking
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.vocabulary import ClosedVocabulary

#: Marked objects of a picture.
OBJECTS = 5
MULTI, SINGLE, STUDENT, TEACHER = "multi", "single", "student-forcing", "teacher-forcing"
MODES = (MULTI, SINGLE, STUDENT, TEACHER)

_MARKER = re.compile(r"\bobj(?:ect)?[\s._-]*([1-5])(?!\d)[\s:=.*-]*", re.IGNORECASE)
_SIGNS = " \t\n.,;:'\"*`<>()[]"


@dataclass(frozen=True)
class RopeReference:
    """What is asked about a picture.

    Attributes:
        image: Tells pictures apart.
        names: Classes of its five objects.
        classes: The list that the prompt gives.
        number: The object asked for, from 1; 0 for all five in one answer.
    """

    image: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    number: int = 0


def split_list(answer: str) -> list[str]:
    """The classes of "obj1: dog, obj2: cat". Raises IndexError if a part between commas lacks ": "."""
    return [part.split(": ")[1] for part in answer.split(", ")]


@dataclass(frozen=True)
class OfficialScorer(Scorer):
    """The official accuracy, with the denominators of its script.

    * All in one answer: where `split_list` fails, 5 objects are added twice, and the characters of the answer
      are compared as classes.
    * Forcing: where it fails, or lists too few, the objects from there on are added a second time, and the
      picture ends: answers to its later objects do not count.

    Attributes:
        mode: One of `MODES`.
    """

    name: str
    version: str
    mode: str
    metrics: tuple[str, ...] = ("accuracy",)

    def count(self, references: Sequence[RopeReference], answers: Sequence[str]) -> np.ndarray:
        """[n, 2]: right objects, objects in the denominator."""
        if self.mode in (STUDENT, TEACHER):
            return _count_forced(references, answers)
        count = _count_one_answer if self.mode == MULTI else _count_single
        return np.array([count(*each) for each in zip(references, answers, strict=True)], np.int64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, objects = np.moveaxis(sums, -1, 0)
        return {"accuracy": ratio(right, objects)}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        """Answers of which everything asked for is right."""
        return counts[:, 0] == (OBJECTS if self.mode == MULTI else 1)


def _count_one_answer(reference: RopeReference, answer: str) -> tuple[int, int]:
    given: Sequence[str]
    try:
        given, objects = split_list(answer), OBJECTS
    except IndexError:
        given, objects = answer, 2 * OBJECTS
    right = sum(a.lower() == b.lower() for a, b in zip(given, reference.names, strict=False))
    return right, objects


def _count_single(reference: RopeReference, answer: str) -> tuple[int, int]:
    return int(answer.lower() == reference.names[reference.number - 1].lower()), 1


def _count_forced(references: Sequence[RopeReference], answers: Sequence[str]) -> np.ndarray:
    counts = np.zeros((len(answers), 2), np.int64)
    for rows in _rows_by_image(references):
        counts[rows[0], 1] = OBJECTS
        for row in sorted(rows, key=lambda row: references[row].number):
            number, names = references[row].number, references[row].names
            try:
                given = split_list(answers[row])[number - 1]
            except IndexError:
                counts[row, 1] += OBJECTS - number + 1
                break
            counts[row, 0] = given.lower() == names[number - 1].lower()
    return counts


@dataclass(frozen=True)
class RegazeScorer(Scorer):
    """Every object once, read by `read_objects`; one that cannot be read is wrong, and counted.

    `all_right` is the share of pictures of which all five objects are right.
    """

    lower_is_better = ("unreadable",)
    name: str = "regaze"
    version: str = "1"
    metrics: tuple[str, ...] = ("accuracy", "all_right", "unreadable")

    def count(self, references: Sequence[RopeReference], answers: Sequence[str]) -> np.ndarray:
        """[n, 5]: right objects, objects, unreadable ones; all right and 1 in a picture's first row."""
        counts = np.zeros((len(answers), 5), np.int64)
        for row, reference, answer in zip(counts, references, answers, strict=True):
            names = reference.names
            if reference.number:
                names = names[reference.number - 1 : reference.number]
            given = read_objects(answer, reference.classes, reference.number)
            right = sum(a == b.lower() for a, b in zip(given, names, strict=True))
            row[:3] = right, len(names), given.count(None)
        for rows in _rows_by_image(references):
            asked, right = counts[rows, 1].sum(), counts[rows, 0].sum()
            counts[rows[0], 3:] = right == asked, 1
        return counts

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, objects, unreadable, all_right, pictures = np.moveaxis(sums, -1, 0)
        return {
            "accuracy": ratio(right, objects),
            "all_right": ratio(all_right, pictures),
            "unreadable": ratio(unreadable, objects),
        }

    def correct(self, counts: np.ndarray) -> np.ndarray:
        """Answers of which everything asked for is right."""
        return counts[:, 0] == counts[:, 1]


def _rows_by_image(references: Sequence[RopeReference]) -> Iterator[list[int]]:
    """The rows of each picture."""
    rows: dict[str, list[int]] = {}
    for row, reference in enumerate(references):
        rows.setdefault(reference.image, []).append(row)
    yield from rows.values()


def read_objects(answer: str, classes: tuple[str, ...], number: int) -> list[str | None]:
    """The classes that an answer gives, in lower case; None where it gives none of the list, or several.

    An answer is what follows the model's thinking.

    Objects are marked (obj1:, Object 1 -), or five parts between commas or lines stand in their order.

    Args:
        number: The one object asked for, whose class may stand alone; 0 for all five.
    """
    answer = without_thinking(answer)
    markers = list(_MARKER.finditer(answer))
    ends = [marker.start() for marker in markers[1:]] + [len(answer)]
    marked = {int(marker[1]): answer[marker.end() : end] for marker, end in zip(markers, ends, strict=False)}
    if number:
        alone = answer[: markers[0].start()] if markers else answer
        text = marked.get(number, alone)
        return [_class_of(text, classes) or _class_of(re.split(r"[,;\n]", text)[0], classes)]
    if not marked:
        parts = [part for part in re.split(r"[,;\n]+", answer) if part.strip(_SIGNS)]
        marked = dict(enumerate(parts, start=1)) if len(parts) == OBJECTS else {}
    return [_class_of(marked.get(each, ""), classes) for each in range(1, OBJECTS + 1)]


def _class_of(text: str, classes: tuple[str, ...]) -> str | None:
    """The class that a text is, or the only one that it names."""
    text = text.strip(_SIGNS).lower()
    names, vocabulary = _vocabulary(classes)
    if text in names:
        return text
    found = {mention.category for mention in vocabulary.read(text)[0]}
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=8)
def _vocabulary(classes: tuple[str, ...]) -> tuple[frozenset[str], ClosedVocabulary]:
    names = tuple(name.lower() for name in classes)
    return frozenset(names), ClosedVocabulary(names)
