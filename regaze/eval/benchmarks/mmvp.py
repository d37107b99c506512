"""MMVP: pairs of images that CLIP takes for the same (Tong et al., CVPR 2024, arXiv 2401.06209).

150 pairs, one question with two options to both, opposite answers; a pair counts when both answers are right
(chance: 25).

`official`
    A judge says yes or no to each answer; only these words, alone, count.
`lmms-eval`
    Letters by a list of patterns, against labels that it has corrected for two pairs (99/100 and 279/280).
`regaze`
    Ours: a letter or an option's text, against the labels as published; unreadable answers are counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import files, judges
from regaze.eval.benchmarks.common import multiple_choice
from regaze.eval.benchmarks.common.base import About, Item, first
from regaze.eval.benchmarks.common.download import hub_file
from regaze.eval.benchmarks.common.judged import Judged, Template
from regaze.eval.benchmarks.common.scoring import Scorer, ratio

FILE = "Questions.csv"
#: Questions whose published labels lmms-eval has exchanged, and its labels.
CORRECTED = {99: "B", 100: "A", 279: "B", 280: "A"}
SUFFIX = "\nAnswer with the option's letter from the given choices directly."

JUDGE = Template(
    "Question: {question}\n"
    "Right answer: {reference}\n"
    "Answer given: {answer}\n"
    "Does the given answer choose the right one? Say yes or no, nothing else.",
    "regaze 1",
)


@dataclass(frozen=True)
class Choice:
    """A question's reference: its number from 1, the options, the right letter as published."""

    number: int
    options: tuple[str, ...]
    letter: str

    @property
    def pair(self) -> int:
        return (self.number - 1) // 2


@dataclass(frozen=True)
class PairScorer(Scorer):
    """Base: accuracy of pairs and of answers, in percent; references are `Choice`."""

    shares = ("unreadable",)
    name: str
    version: str
    figures: tuple[str, ...] = ("pair_accuracy", "accuracy", "unreadable")

    def read(self, reference: Choice, answer: Any) -> tuple[bool, bool]:
        """(right, readable)."""
        raise NotImplementedError

    def tally(self, references: Sequence[Choice], answers: Sequence[Any]) -> np.ndarray:
        """[n, 5]: right, readable, 1; pairs with both right and pairs, in the row of a pair's first item."""
        read = [self.read(*each) for each in zip(references, answers, strict=True)]
        counts = np.array([(right, readable, 1, 0, 0) for right, readable in read])
        pairs: dict[int, list[int]] = {}
        for row, reference in enumerate(references):
            pairs.setdefault(reference.pair, []).append(row)
        for rows in pairs.values():
            if len(rows) == 2:
                counts[rows[0], 3:] = counts[rows, 0].all(), 1
        return counts

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, readable, asked, both, pairs = np.moveaxis(sums, -1, 0)
        accuracy = 100 * ratio(right, asked)
        unreadable = 1 - ratio(readable, asked)
        return {"pair_accuracy": 100 * ratio(both, pairs), "accuracy": accuracy, "unreadable": unreadable}

    def right(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, 0] > 0


class ByLetter(PairScorer):
    """lmms-eval's letters and labels."""

    def read(self, reference: Choice, answer: str) -> tuple[bool, bool]:
        letter = multiple_choice.lmms_eval_mmvp(answer)
        return letter == CORRECTED.get(reference.number, reference.letter), bool(letter)


class ByChoice(PairScorer):
    """Our reading, the published labels."""

    def read(self, reference: Choice, answer: str) -> tuple[bool, bool]:
        letter = multiple_choice.read_choice(answer, reference.options)
        return letter == reference.letter, bool(letter)


class ByVerdict(PairScorer):
    """The official grader: "answers" are a judge's words."""

    def read(self, reference: Choice, answer: str) -> tuple[bool, bool]:
        found = re.match(r"(yes|no)$", answer, re.IGNORECASE)
        return bool(found and found[1].lower() == "yes"), found is not None


LMMS_EVAL = ByLetter("lmms-eval", "lmms-eval 75571cf")
OWN = ByChoice("regaze", "1")
OFFICIAL = ByVerdict("official", "tsb0601/MMVP 7635005 gpt_grader.py")


@dataclass(frozen=True)
class Mmvp(Judged):
    """The 300 questions.

    With `lettered` the options stand as A. and B. on lines of their own, as harnesses put them; otherwise as
    published, in the line of the question.
    """

    items: tuple[Item, ...]
    judged: bool = False
    judge: judges.Judge | None = None
    lettered: bool = False
    template: Template = JUDGE
    suffix: str = ""
    name: str = "mmvp"
    about: ClassVar[About] = About(
        title="MMVP",
        paper="Tong et al., CVPR 2024, arXiv 2401.06209",
        licence="MIT by its data card",
        images="ImageNet and LAION-Aesthetics, in the data set's repository on the hub",
        home="https://github.com/tsb0601/MMVP",
        hub="MMVP/MMVP",
        files=(hub_file("MMVP/MMVP", FILE),),
    )

    @classmethod
    def load(
        cls,
        folder: Path,
        images: Path | None = None,
        *,
        judge: judges.Judge | None = None,
        limit: int | None = None,
        **options: Any,
    ) -> Mmvp:
        """Questions.csv in `folder`, pictures as <number>.jpg in `images` (`folder`/MMVP Images).

        Args:
            judge: with one the official score is taken, unless the option `judged` is False.

        Raises:
            InputError: a missing or malformed file, or `judged` without a judge.
        """
        path = files.find_file(folder, FILE)
        pictures = images or folder / "MMVP Images"
        items = []
        for line, row in files.read_table(path, ("Index", "Question", "Options", "Correct Answer")):
            items.append(_item(row, pictures, f"{path}:{line}"))
        return cls(
            first(items, limit, {item.key: item.reference.pair for item in items}),
            judge=judge,
            **{"judged": judge is not None, **options},
        )

    def prompt(self, item: Item) -> str:
        if not self.lettered:
            return item.question + self.suffix
        question, _ = item.question.split(" (a)", 1)
        return multiple_choice.lettered(question, item.reference.options) + SUFFIX + self.suffix

    def verdicts(self, answers: Sequence[str]) -> list[str]:
        prompts = [
            self.template.fill(question=item.question, reference=item.label, answer=answer)
            for item, answer in zip(self.items, answers, strict=True)
        ]
        return [text.strip().rstrip(".") for text in self.configured().judge(prompts)]

    def scorers(self) -> Sequence[Scorer]:
        if self.judged:
            return (ByVerdict("official", f"{OFFICIAL.version}, prompt {self.template.name}"),)
        return (LMMS_EVAL, OWN)

    def cluster(self, item: Item) -> int:
        """The pair."""
        return item.reference.pair


def _item(row: Mapping[str, str], pictures: Path, source: str) -> Item:
    options = tuple(text.strip() for text in re.split(r"\([a-z]\)", row["Options"])[1:])
    letter = row["Correct Answer"].strip().strip("()").upper()
    if not row["Index"].strip().isdigit() or len(options) < 2 or letter not in "ABCD"[: len(options)]:
        raise InputError(
            f"{source}: expected a number, options like '(a) .. (b) ..' and one of them as the answer; "
            f"got {dict(row)}"
        )
    number = int(row["Index"])
    question = f"{row['Question'].strip()} {row['Options'].strip()}"
    reference = Choice(number, options, letter)
    return Item(
        str(number), "mmvp", pictures / f"{number}.jpg", question, f"({letter.lower()})", source, reference
    )
