"""V*Bench: small details in large photographs (Wu and Xie, CVPR 2024, arXiv 2312.14135).

191 questions with two to four options: attributes of an object (direct_attributes), and where two things are
(relative_position). The official script asks the question alone and takes the option with the least
cross-entropy for the answer (`VStarLikelihood`); harnesses show the options and ask for a letter (`VStar`).

`official`
    The likeliest option, of the mean over its tokens and the end token. The script's search for parts of the
    image that its own model asks for is no part of it. Where several options are as likely, the script takes
    the right one (it comes first in the files); here options are shuffled.
`lmms-eval`
    Letters by a list of patterns.
`regaze`
    Ours: a letter or an option's text; unreadable answers are counted.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import hub, multiple_choice
from regaze.eval.benchmarks.common.base import About, Item, Scored, first
from regaze.eval.benchmarks.common.scoring import Scorer, ratio

QUESTIONS = "test_questions.jsonl"
CATEGORIES = ("direct_attributes", "relative_position")
LETTERS = "ABCDEFGHIJ"
SUFFIX = "\nAnswer with the option's letter from the given choices directly."
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Choice:
    """A question's reference: the options in the order asked, and the letter of the right one."""

    options: tuple[str, ...]
    letter: str

    @property
    def right(self) -> str:
        """The right option."""
        return self.options[LETTERS.index(self.letter)]


@dataclass(frozen=True)
class ChoiceScorer(Scorer):
    """Accuracy of letters; `strict` reads as `multiple_choice.read_choice`, otherwise as lmms-eval."""

    name: str
    version: str
    strict: bool
    figures: tuple[str, ...] = ("accuracy", "unreadable")
    proportion = "accuracy"

    def tally(self, references: Sequence[Choice], answers: Sequence[str]) -> np.ndarray:
        """[n, 3]: right, readable, 1."""
        read = [
            multiple_choice.read_choice(answer, reference.options)
            if self.strict
            else multiple_choice.lmms_eval_vstar(answer)
            for reference, answer in zip(references, answers, strict=True)
        ]
        return np.array(
            [
                (letter == reference.letter, bool(letter), 1)
                for letter, reference in zip(read, references, strict=True)
            ],
            dtype=np.int64,
        )

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        accuracy = ratio(sums[..., 0], sums[..., 2])
        return {"accuracy": accuracy, "unreadable": 1 - ratio(sums[..., 1], sums[..., 2])}

    def right(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, 0] > 0


@dataclass(frozen=True)
class LikelihoodScorer(Scorer):
    """Accuracy of chosen options, given by their texts; an answer that is no option is wrong and counted."""

    name: str = "official"
    version: str = "penghao-wu/vstar 4ede664 vstar_bench_eval.py, without its visual search"
    figures: tuple[str, ...] = ("accuracy", "unreadable")
    proportion = "accuracy"

    def tally(self, references: Sequence[Choice], answers: Sequence[str]) -> np.ndarray:
        """[n, 3]: right, among the options, 1."""
        return np.array(
            [
                (answer == reference.right, answer in reference.options, 1)
                for reference, answer in zip(references, answers, strict=True)
            ],
            dtype=np.int64,
        )

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        accuracy = ratio(sums[..., 0], sums[..., 2])
        return {"accuracy": accuracy, "unreadable": 1 - ratio(sums[..., 1], sums[..., 2])}

    def right(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, 0] > 0


LMMS_EVAL = ChoiceScorer("lmms-eval", "lmms-eval 75571cf", strict=False)
OWN = ChoiceScorer("regaze", "1", strict=True)


@dataclass(frozen=True)
class VStar(Scored):
    """The 191 questions, a split per category."""

    items: tuple[Item, ...]
    suffix: str = SUFFIX
    name: str = "vstar"
    about: ClassVar[About] = About(
        title="V*Bench",
        paper="Wu and Xie, CVPR 2024, arXiv 2312.14135",
        licence="none stated on its data card",
        images="SA-1B photographs (a research licence of Meta), in the data set's repository on the hub",
        home="https://github.com/penghao-wu/vstar",
        hub="lmms-lab-encoder/vstar-bench",
    )

    @classmethod
    def load(
        cls,
        folder: Path,
        images: Path | None = None,
        *,
        seed: int = 0,
        limit: int | None = None,
        **options: Any,
    ) -> VStar:
        """test_questions.jsonl, or the official folders with a JSON file beside each image.

        In the official files the first option is always the right one: they are shuffled with `seed`.

        Raises:
            InputError: neither layout is there, or a file is malformed.
        """
        root = images or folder
        if any((folder / name).is_file() for name in (QUESTIONS, f"{QUESTIONS}.gz")):
            path = files.find_file(folder, QUESTIONS)
            items = [
                _lettered(
                    record, root / files.field(record, "image", str, f"{path}:{line}"), f"{path}:{line}"
                )
                for line, record in files.read_records(path)
            ]
        else:
            items = [item for category in CATEGORIES for item in _official(folder, category, seed, _item)]
        if not items:
            raise InputError(
                f"{folder} has neither {QUESTIONS} nor {' and '.join(CATEGORIES)} with JSON files"
            )
        return cls(first(items, limit), **options)

    @classmethod
    def from_hub(cls, *, limit: int | None = None, **options: Any) -> VStar:
        """lmms-eval's copy, with letters."""
        rows = hub.rows(cls.about.hub, split="test")
        return cls(first([_lettered(row.values, row.image, row.source) for row in rows], limit), **options)

    def scorers(self) -> Sequence[Scorer]:
        return (LMMS_EVAL, OWN)


@dataclass(frozen=True)
class VStarLikelihood(Scored):
    """The 191 questions as the official script puts them: alone, the answer being the likeliest option."""

    items: tuple[Item, ...]
    name: str = "vstar-likelihood"
    about: ClassVar[About] = dataclasses.replace(VStar.about, title="V*Bench by likelihood", hub=None)

    @classmethod
    def load(cls, folder: Path, *, seed: int = 0, limit: int | None = None) -> VStarLikelihood:
        """The official folders: a JSON file beside each image. `seed` shuffles the options, as in `VStar`.

        Raises:
            InputError: they are not there, or a file is malformed.
        """
        items = [item for category in CATEGORIES for item in _official(folder, category, seed, _ranked)]
        if not items:
            raise InputError(f"{folder} has no {' and '.join(CATEGORIES)} with JSON files and their images")
        return cls(first(items, limit))

    def scorers(self) -> Sequence[Scorer]:
        return (LikelihoodScorer(),)


def _official(folder: Path, category: str, seed: int, put: Callable[..., Item]) -> list[Item]:
    """Questions of a category, each `put` to the model in its way."""
    items = []
    for path in sorted((folder / category).glob("*.json")):
        record = files.read_json(path)
        choices = files.field(record, "options", list, str(path))
        if not 2 <= len(choices) <= 10 or not all(isinstance(each, str) for each in choices):
            raise InputError(f"{path}: 'options' must be a list of 2 to 10 texts, got {choices!r}")
        image = next((path.with_suffix(end) for end in _IMAGES if path.with_suffix(end).is_file()), None)
        if image is None:
            raise InputError(f"{path}: there is no image of that name beside it")
        order = list(range(len(choices)))
        random.Random(f"{seed}/{path.stem}").shuffle(order)
        reference = Choice(tuple(choices[i] for i in order), LETTERS[order.index(0)])
        question = files.field(record, "question", str, str(path))
        items.append(put(f"{category}/{path.stem}", category, image, question, reference, str(path)))
    return items


def _lettered(record: Any, image: Path | None, source: str) -> Item:
    """A record whose text ends in "(A) .. (B) .."."""
    text = files.field(record, "text", str, source)
    question, *choices = re.split(r"\s*\([A-J]\)\s*", text)
    letter = files.field(record, "label", str, source).strip().upper()
    if len(choices) < 2 or letter not in LETTERS[: len(choices)]:
        raise InputError(
            f"{source}: expected options (A), (B).. in the text and one of them as label; got {text!r}"
        )
    # What follows the last option on a line of its own is the data set's own instruction.
    reference = Choice(tuple(choice.split("\n")[0].strip() for choice in choices), letter)
    category = str(record.get("category", "all"))
    key = f"{category}/{record.get('question_id', source)}"
    return _item(key, category, image, question, reference, source)


def _item(key: str, category: str, image: Path | None, question: str, reference: Choice, source: str) -> Item:
    """A question that is asked for a letter."""
    text = multiple_choice.lettered(question, reference.options)
    return Item(key, category, image, text, reference.letter, source, reference, max_new_tokens=16)


def _ranked(
    key: str, category: str, image: Path | None, question: str, reference: Choice, source: str
) -> Item:
    """A question whose options are ranked."""
    return Item(key, category, image, question, reference.right, source, reference, options=reference.options)
