"""MMVP: pairs of images with nearly the same CLIP embedding (Tong et al., CVPR 2024, arXiv 2401.06209).

150 pairs. Both images have the same question with two options, and opposite answers. A pair counts if both
answers are correct (chance: 25).

`official`
    A judge says yes or no to each answer; only verdicts that are exactly one of these words count.
`lmms-eval`
    Letters by a list of patterns, against labels corrected for two pairs (99/100 and 279/280).
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
from regaze.eval.benchmarks.common.base import About, Item, limit_items
from regaze.eval.benchmarks.common.download import hub_file
from regaze.eval.benchmarks.common.judged import JudgedBenchmark, JudgePrompt
from regaze.eval.benchmarks.common.multiple_choice import LETTERS
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.reading import StrPath

FILE = "Questions.csv"
#: Question number -> label of lmms-eval where it differs from the published one.
CORRECTED = {99: "B", 100: "A", 279: "B", 280: "A"}
SUFFIX = "\nAnswer with the option's letter from the given choices directly."

JUDGE = JudgePrompt(
    "Question: {question}\n"
    "Right answer: {reference}\n"
    "Answer given: {answer}\n"
    "Does the given answer choose the right one? Say yes or no, nothing else.",
    "regaze 1",
)


# lmms-eval's patterns for a letter, in the order in which they are tried.
_LETTER_PATTERNS = (
    r"^\s*\(?([AB])\)?\.?\s*$",
    r"^\s*\(?([AB])\)?[.\s]",
    r"answer\s+is\s+\(?([AB])\)?",
    r"option\s+\(?([AB])\)?",
    r"\(?([AB])\)?(?:\s|$)",
)


def read_lmms_eval(answer: str) -> str:
    """The letter, A or B, that lmms-eval reads, "" for none. A "B" may come from the word "be"."""
    text = answer.strip()
    first = text[:1].upper() if text[:1] in "abAB" else ""
    return multiple_choice.first_match(_LETTER_PATTERNS, text) or first


@dataclass(frozen=True)
class MmvpReference:
    """A question: its number from 1, the options, the correct letter as published."""

    number: int
    options: tuple[str, ...]
    letter: str

    @property
    def pair(self) -> int:
        return (self.number - 1) // 2


@dataclass(frozen=True)
class PairScorer(Scorer):
    """Base of the scorers: accuracy of pairs and of answers, in percent; references are `MmvpReference`."""

    fractions = ("unreadable",)
    name: str
    version: str
    metrics: tuple[str, ...] = ("pair_accuracy", "accuracy", "unreadable")

    def read(self, reference: MmvpReference, answer: Any) -> tuple[bool, bool]:
        """(whether the answer is correct, whether it is readable)."""
        raise NotImplementedError

    def count(self, references: Sequence[MmvpReference], answers: Sequence[Any]) -> np.ndarray:
        """[n, 5]: correct, readable, 1; both correct and 1 in the row of a pair's first item."""
        readings = [self.read(*each) for each in zip(references, answers, strict=True)]
        counts = np.array([(correct, readable, 1, 0, 0) for correct, readable in readings])
        pairs: dict[int, list[int]] = {}
        for row, reference in enumerate(references):
            pairs.setdefault(reference.pair, []).append(row)
        for rows in pairs.values():
            if len(rows) == 2:
                counts[rows[0], 3:] = counts[rows, 0].all(), 1
        return counts

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        correct, readable, questions, both, pairs = np.moveaxis(sums, -1, 0)
        accuracy = 100 * ratio(correct, questions)
        unreadable = 1 - ratio(readable, questions)
        return {"pair_accuracy": 100 * ratio(both, pairs), "accuracy": accuracy, "unreadable": unreadable}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, 0] > 0


class LmmsEvalScorer(PairScorer):
    """lmms-eval's letters and labels."""

    def read(self, reference: MmvpReference, answer: str) -> tuple[bool, bool]:
        letter = read_lmms_eval(answer)
        return letter == CORRECTED.get(reference.number, reference.letter), bool(letter)


class ChoiceScorer(PairScorer):
    """Our reading (`multiple_choice.read_choice`), the published labels."""

    def read(self, reference: MmvpReference, answer: str) -> tuple[bool, bool]:
        letter = multiple_choice.read_choice(answer, reference.options)
        return letter == reference.letter, bool(letter)


class VerdictScorer(PairScorer):
    """The official grader: "answers" are a judge's verdicts."""

    def read(self, reference: MmvpReference, answer: str) -> tuple[bool, bool]:
        match = re.match(r"(yes|no)$", answer, re.IGNORECASE)
        return bool(match and match[1].lower() == "yes"), match is not None


LMMS_EVAL = LmmsEvalScorer("lmms-eval", "lmms-eval 75571cf")
REGAZE = ChoiceScorer("regaze", "2")
OFFICIAL = VerdictScorer("official", "tsb0601/MMVP 7635005 gpt_grader.py")


@dataclass(frozen=True)
class Mmvp(JudgedBenchmark):
    """The 300 questions.

    With `lettered` the options are on lines of their own as A. and B., as in harnesses; otherwise they are in
    the line of the question, as published.
    """

    items: tuple[Item, ...]
    judged: bool = False
    judge: judges.Judge | None = None
    lettered: bool = False
    judge_prompt: JudgePrompt = JUDGE
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
        folder: StrPath,
        images: StrPath | None = None,
        *,
        judge: judges.Judge | None = None,
        limit: int | None = None,
        **options: Any,
    ) -> Mmvp:
        """Questions.csv in `folder`, images as <number>.jpg in `images` (`folder`/MMVP Images).

        Args:
            judge: With a judge the score is the official one, unless the option `judged` is False.

        Raises:
            InputError: A file is missing or malformed, or `judged` is set without a judge.
        """
        folder, image_folder = files.folders_of(folder, images, "MMVP Images")
        path = files.find_file(folder, FILE)
        items = []
        for line, row in files.read_table(path, ("Index", "Question", "Options", "Correct Answer")):
            items.append(_item(row, image_folder, f"{path}:{line}"))
        chosen = limit_items(items, limit, {item.key: item.reference.pair for item in items})
        _require_pairs(chosen)
        return cls(
            chosen,
            judge=judge,
            **{"judged": judge is not None, **options},
        )

    def prompt(self, item: Item) -> str:
        if not self.lettered:
            return item.question + self.suffix
        question, _ = item.question.split(" (a)", 1)
        return multiple_choice.format_options(question, item.reference.options) + SUFFIX + self.suffix

    def wordings(self, item: Item) -> tuple[str, ...]:
        """Also without its options, which harnesses keep apart."""
        return (*super().wordings(item), item.question.split(" (a)", 1)[0])

    def right_answers(self, item: Item) -> tuple[str, ...]:
        """As published, and as corrected in lmms-eval's copy."""
        return item.label, CORRECTED.get(item.reference.number, item.label)

    def verdicts(self, answers: Sequence[str]) -> list[str]:
        prompts = [
            self.judge_prompt.fill(question=item.question, reference=item.label, answer=answer)
            for item, answer in zip(self.items, answers, strict=True)
        ]
        return [text.strip().rstrip(".") for text in self.require_judge().judge(prompts)]

    def scorers(self) -> Sequence[Scorer]:
        if self.judged:
            return (VerdictScorer("official", f"{OFFICIAL.version}, prompt {self.judge_prompt.name}"),)
        return (LMMS_EVAL, REGAZE)

    def cluster(self, item: Item) -> int:
        """The pair."""
        return item.reference.pair


def _require_pairs(items: Sequence[Item]) -> None:
    numbers = {item.reference.number for item in items}
    for item in items:
        partner = item.reference.number + (1 if item.reference.number % 2 else -1)
        if partner not in numbers:
            raise InputError(
                f"{item.source}: question {item.reference.number} lacks its partner {partner}: they are "
                "scored in pairs"
            )


def _item(row: Mapping[str, str], image_folder: Path, source: str) -> Item:
    _, options = multiple_choice.split_options(row["Options"], source)
    letter = row["Correct Answer"].strip().strip("()").upper()
    is_number = re.fullmatch(r"0*[1-9][0-9]{0,8}", row["Index"].strip())
    if not is_number or not row["Question"].strip() or letter not in tuple(LETTERS)[: len(options)]:
        raise InputError(
            f"{source}: expected a number from 1, a question, and the letter of one of the options as the "
            f"answer; got {dict(row)}"
        )
    number = int(row["Index"])
    question = f"{row['Question'].strip()} {row['Options'].strip()}"
    reference = MmvpReference(number, options, letter)
    image, label = image_folder / f"{number}.jpg", f"({letter.lower()})"
    return Item(str(number), "mmvp", image, question, label, source, reference, id=str(number))
