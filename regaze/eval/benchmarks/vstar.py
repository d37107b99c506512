"""V*Bench: small details in large photographs (Wu and Xie, CVPR 2024, arXiv 2312.14135).

191 questions with two to four options: attributes of an object (direct_attributes), and relative positions of
two objects (relative_position). The official script puts the question alone and takes the option with the
least cross-entropy as the answer (`VStarLikelihood`); harnesses show the options and request a letter
(`VStar`).

`official`
    The most likely option, by the mean over its tokens and the end token. Not included is the script's visual
    search, for which its own model requests parts of the image. Of equally likely options the script takes
    the correct one (it comes first in the files); here options are shuffled.
`lmms-eval`
    Letters by a list of patterns.
`regaze`
    Ours: a letter or an option's text; the share of unreadable answers is reported.
"""

from __future__ import annotations

import dataclasses
import os
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
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.multiple_choice import LETTERS
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.reading import StrPath

QUESTIONS = "test_questions.jsonl"
CATEGORIES = ("direct_attributes", "relative_position")
SUFFIX = "\nAnswer with the option's letter from the given choices directly."
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# lmms-eval's patterns for a letter, in the order in which they are tried.
_LETTER_PATTERNS = (
    r"^([A-D])\s*[.)\]]*",
    r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
    r"\(([A-D])\)",
    r"([A-D])\s*[.)\]]",
    r"(?:^|\s)([A-D])(?:\s|$)",
)


def read_lmms_eval(answer: str) -> str:
    """The letter, A to D, that lmms-eval reads, "" for none. A "B" may come from the word "be"."""
    text = answer.strip().upper()
    if found := multiple_choice.first_match(_LETTER_PATTERNS, text):
        return found
    letters = re.findall("[A-D]", text)
    return letters[0] if len(letters) == 1 else ""


@dataclass(frozen=True)
class VStarReference:
    """A question: the options in the order in which they are shown, and the letter of the correct one."""

    options: tuple[str, ...]
    letter: str

    @property
    def answer(self) -> str:
        """The correct option."""
        return self.options[LETTERS.index(self.letter)]


class OptionScorer(Scorer):
    """Base of the scorers: accuracy, and share of unreadable answers; references are `VStarReference`."""

    metrics: tuple[str, ...] = ("accuracy", "unreadable")
    accuracy_metric = "accuracy"

    def read(self, reference: VStarReference, answer: str) -> tuple[bool, bool]:
        """(whether the answer is correct, whether it is readable)."""
        raise NotImplementedError

    def count(self, references: Sequence[VStarReference], answers: Sequence[str]) -> np.ndarray:
        """[n, 3]: correct, readable, 1."""
        readings = [self.read(*each) for each in zip(references, answers, strict=True)]
        return np.array([(correct, readable, 1) for correct, readable in readings], dtype=np.int64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        accuracy = ratio(sums[..., 0], sums[..., 2])
        return {"accuracy": accuracy, "unreadable": 1 - ratio(sums[..., 1], sums[..., 2])}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, 0] > 0


class LmmsEvalScorer(OptionScorer):
    """lmms-eval's letters."""

    name = "lmms-eval"
    version = "lmms-eval 75571cf"

    def read(self, reference: VStarReference, answer: str) -> tuple[bool, bool]:
        letter = read_lmms_eval(answer)
        return letter == reference.letter, bool(letter)


class ChoiceScorer(OptionScorer):
    """Letters and texts of options by `multiple_choice.read_choice`."""

    name = "regaze"
    version = "2"

    def read(self, reference: VStarReference, answer: str) -> tuple[bool, bool]:
        letter = multiple_choice.read_choice(answer, reference.options)
        return letter == reference.letter, bool(letter)


class LikelihoodScorer(OptionScorer):
    """Options chosen by likelihood, given as their texts; an answer that is no option is unreadable."""

    name = "official"
    version = "penghao-wu/vstar 4ede664 vstar_bench_eval.py, without its visual search"

    def read(self, reference: VStarReference, answer: str) -> tuple[bool, bool]:
        return answer == reference.answer, answer in reference.options


@dataclass(frozen=True)
class VStar(BaseBenchmark):
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
        folder: StrPath,
        images: StrPath | None = None,
        *,
        seed: int = 0,
        limit: int | None = None,
        **options: Any,
    ) -> VStar:
        """test_questions.jsonl, or the official folders with a JSON file next to each image.

        In the official files the first option is always the correct one: options are shuffled with `seed`.

        Raises:
            InputError: Neither layout is found, or a file is malformed.
        """
        folder, root = files.folders_of(folder, images, "")
        if any(os.path.isfile(folder / name) for name in (QUESTIONS, f"{QUESTIONS}.gz")):
            path = files.find_file(folder, QUESTIONS)
            items = []
            for line, record in files.read_records(path):
                source = f"{path}:{line}"
                image = root / files.require_field(record, "image", str, source)
                items.append(_read_lettered(record, image, source))
        else:
            items = _read_official(folder, seed, _letter_item)
        if not items:
            raise InputError(
                f"{folder} has neither {QUESTIONS} nor {' and '.join(CATEGORIES)} with JSON files"
            )
        return cls(limit_items(items, limit), **options)

    @classmethod
    def from_hub(cls, *, limit: int | None = None, **options: Any) -> VStar:
        """lmms-eval's copy, with letters."""
        rows = hub.read_rows(cls.about.hub, split="test")
        items = [_read_lettered(row.values, row.image, row.source) for row in rows]
        return cls(limit_items(items, limit), **options)

    def scorers(self) -> Sequence[Scorer]:
        return (LmmsEvalScorer(), ChoiceScorer())


@dataclass(frozen=True)
class VStarLikelihood(BaseBenchmark):
    """The 191 questions as in the official script: alone, and the answer is the most likely option."""

    items: tuple[Item, ...]
    name: str = "vstar-likelihood"
    about: ClassVar[About] = dataclasses.replace(VStar.about, title="V*Bench by likelihood", hub=None)

    @classmethod
    def load(cls, folder: StrPath, *, seed: int = 0, limit: int | None = None) -> VStarLikelihood:
        """The official folders: a JSON file next to each image. `seed` shuffles the options, as in `VStar`.

        Raises:
            InputError: The folders do not exist, or a file is malformed.
        """
        items = _read_official(Path(folder), seed, _ranked_item)
        if not items:
            raise InputError(f"{folder} has no {' and '.join(CATEGORIES)} with JSON files and their images")
        return cls(limit_items(items, limit))

    def scorers(self) -> Sequence[Scorer]:
        return (LikelihoodScorer(),)


def _read_official(folder: Path, seed: int, make_item: Callable[..., Item]) -> list[Item]:
    """The questions of the official folders, with shuffled options."""
    paths = [path for category in CATEGORIES for path in sorted((folder / category).glob("*.json"))]
    return [_read_official_file(path, seed, make_item) for path in paths]


def _read_official_file(path: Path, seed: int, make_item: Callable[..., Item]) -> Item:
    record = files.read_json(path)
    options = multiple_choice.check_options(files.require_texts(record, "options", str(path)), str(path))
    candidates = (path.with_suffix(suffix) for suffix in _IMAGE_SUFFIXES)
    image = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
    if image is None:
        raise InputError(f"{path}: there is no image of that name beside it")
    order = list(range(len(options)))
    random.Random(f"{seed}/{path.stem}").shuffle(order)
    reference = VStarReference(tuple(options[i] for i in order), LETTERS[order.index(0)])
    question, category = files.require_field(record, "question", str, str(path)), path.parent.name
    return make_item(f"{category}/{path.stem}", category, image, question, reference, str(path))


def _read_lettered(record: Any, image: Path | None, source: str) -> Item:
    """The question of a record whose text ends in "(A) .. (B) .."."""
    text = files.require_field(record, "text", str, source)
    question, options = multiple_choice.split_options(text, source)
    letter = files.require_field(record, "label", str, source).strip().upper()
    if not question.strip() or letter not in tuple(LETTERS)[: len(options)]:
        raise InputError(
            f"{source}: expected a question with options (A), (B) and the letter of one of them as label; "
            f"got {text!r} and {record['label']!r}"
        )
    # A line after the last option is the data set's own instruction.
    reference = VStarReference(tuple(option.split("\n")[0].strip() for option in options), letter)
    category = files.require_field({"category": "all", **record}, "category", str, source)
    has_id = "question_id" in record
    own_id = str(files.require_field(record, "question_id", (int, str), source)) if has_id else ""
    item = _letter_item(f"{category}/{own_id or source}", category, image, question, reference, source)
    return dataclasses.replace(item, id=own_id)


def _letter_item(
    key: str, category: str, image: Path | None, question: str, reference: VStarReference, source: str
) -> Item:
    """A question that shows its options with letters."""
    text = multiple_choice.format_options(question, reference.options)
    return Item(key, category, image, text, reference.letter, source, reference, max_new_tokens=16)


def _ranked_item(
    key: str, category: str, image: Path | None, question: str, reference: VStarReference, source: str
) -> Item:
    """A question whose options are ranked by likelihood."""
    options = reference.options
    return Item(key, category, image, question, reference.answer, source, reference, options=options)
