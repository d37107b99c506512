"""CRPE's scoring rules: the official one, VLMEvalKit's under two assumptions, lmms-eval's, and ours."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from regaze.eval.benchmarks.common import choice_readers, multiple_choice
from regaze.eval.benchmarks.common.scoring import Scorer, ratio

EXIST = "exist"
#: The categories of the file of relations; "overall" of the published table is their unweighted mean.
RELATIONS = ("subject", "predicate", "object")
CATEGORIES = (EXIST, *RELATIONS)
#: Rows of a question: its options begin with each of the four in turn.
ROTATIONS = 4
_LETTERS = "ABCD"


@dataclass(frozen=True)
class CrpeReference:
    """A row: its category, the options as shown, the right one's letter, and the question that it rotates."""

    category: str
    options: tuple[str, ...]
    letter: str
    question: Hashable

    @property
    def answer(self) -> str:
        """The right option."""
        return self.options[_LETTERS.index(self.letter)]


@dataclass(frozen=True)
class CrpeScorer(Scorer):
    """Base of the scorers: which rows are right, and which of them only count together.

    Attributes:
        categories: Those of the questions, in the order of `CATEGORIES`.
    """

    name: str
    version: str
    categories: tuple[str, ...] = CATEGORIES

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """The published table's "overall" where all its categories are there, then each category."""
        return (*(("overall",) if set(RELATIONS) <= set(self.categories) else ()), *self.categories)

    def is_right(self, reference: CrpeReference, answer: str) -> bool:
        """Whether the answer to one row is right."""
        raise NotImplementedError

    def groups(self, references: Sequence[CrpeReference]) -> Iterable[Sequence[int]]:
        """Rows that are counted together."""
        raise NotImplementedError

    def count(self, references: Sequence[CrpeReference], answers: Sequence[str]) -> np.ndarray:
        """[n, categories, 2]: whether all rows of a group are right, and 1, in its first row."""
        right = [self.is_right(*pair) for pair in zip(references, answers, strict=True)]
        counts = np.zeros((len(references), len(self.categories), 2))
        for rows in self.groups(references):
            column = self.categories.index(references[rows[0]].category)
            counts[rows[0], column] = all(right[row] for row in rows), 1
        return counts

    def add_columns(
        self, counts: np.ndarray, references: Sequence[CrpeReference], values: Sequence[tuple[float, ...]]
    ) -> np.ndarray:
        """`counts` with further columns, of each row's category."""
        more = np.zeros((*counts.shape[:2], len(values[0])))
        columns = [self.categories.index(reference.category) for reference in references]
        more[np.arange(len(references)), columns] = values
        return np.concatenate([counts, more], axis=-1)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        shares = ratio(sums[..., 0], sums[..., 1])
        figures = dict(zip(self.categories, np.moveaxis(shares, -1, 0), strict=True))
        if "overall" in self.metrics:
            figures["overall"] = sum((figures[name] for name in RELATIONS), np.zeros(())) / len(RELATIONS)
        return figures


def _in_fours(rows: Sequence[int]) -> list[Sequence[int]]:
    return [rows[start : start + ROTATIONS] for start in range(0, len(rows), ROTATIONS)]


class OfficialScorer(CrpeScorer):
    """The script's: an answer is one character, and rows are grouped by their place among their category's.

    It stops at a category whose rows are no multiple of four, or that has no answer of at most one character:
    there the category is undefined here.
    """

    def is_right(self, reference: CrpeReference, answer: str) -> bool:
        return answer == reference.letter

    def groups(self, references: Sequence[CrpeReference]) -> list[Sequence[int]]:
        rows = {
            category: [row for row, reference in enumerate(references) if reference.category == category]
            for category in self.categories
        }
        return [group for category in self.categories for group in _in_fours(rows[category])]

    def count(self, references: Sequence[CrpeReference], answers: Sequence[str]) -> np.ndarray:
        """[n, categories, 4]: as `CrpeScorer.count`, then rows, and answers of at most one character."""
        counts = super().count(references, answers)
        return self.add_columns(counts, references, [(1, len(answer) <= 1) for answer in answers])

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        stops = (sums[..., 2] % ROTATIONS != 0) | (sums[..., 3] == 0)
        right = np.where(stops, np.nan, sums[..., 0])
        return super().compute(np.stack([right, sums[..., 1]], axis=-1))


@dataclass(frozen=True)
class VlmEvalKitScorer(CrpeScorer):
    """VLMEvalKit's: rows are grouped by their place, and the first wrong one ends a group.

    An answer of several characters that begins with A to D is that letter ("Because" is B). Any other is
    right if it holds the right answer of the table from its fifth character on. Which of two forms that
    answer has could not be checked. An empty answer stops the script, unless it stands behind a wrong one:
    then all figures are undefined.

    Attributes:
        with_text: The table's answer is "B. cat", so that "at" is looked for; otherwise it is "B", and every
            answer that begins with no letter is right.
    """

    with_text: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("total", *self.categories)

    def is_right(self, reference: CrpeReference, answer: str) -> bool:
        if len(answer) == 1 or answer[:1] in tuple(_LETTERS):
            return answer[:1] == reference.letter
        gold = f"{reference.letter}. {reference.answer}" if self.with_text else reference.letter
        return gold[4:].lower() in answer.lower()

    def groups(self, references: Sequence[CrpeReference]) -> list[Sequence[int]]:
        return _in_fours(range(len(references)))

    def count(self, references: Sequence[CrpeReference], answers: Sequence[str]) -> np.ndarray:
        """[n, categories, 3]: as `CrpeScorer.count`, then whether the script stops at a row."""
        counts = super().count(references, answers)
        stops = [False] * len(answers)
        for rows in self.groups(references):
            is_last = len(rows) < ROTATIONS
            for row in rows:
                stops[row] = is_last or not answers[row]
                if stops[row] or not self.is_right(references[row], answers[row]):
                    break
        return self.add_columns(counts, references, [(each,) for each in stops])

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right = np.where(sums[..., 2].any(-1, keepdims=True), np.nan, sums[..., 0])
        total = ratio(right.sum(-1), sums[..., 1].sum(-1))
        return {"total": total, **super().compute(np.stack([right, sums[..., 1]], axis=-1))}


class LmmsEvalScorer(CrpeScorer):
    """lmms-eval's: the share of right rows, whatever they rotate. Its task has the relations alone."""

    accuracy_metric = "exact_match"

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("exact_match", *self.categories)

    def is_right(self, reference: CrpeReference, answer: str) -> bool:
        return read_lmms_eval(answer, reference.options).upper() == reference.letter

    def groups(self, references: Sequence[CrpeReference]) -> list[Sequence[int]]:
        return [[row] for row in range(len(references))]

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, :, 0].sum(1) > 0

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        total = ratio(sums[..., 0].sum(-1), sums[..., 1].sum(-1))
        return {"exact_match": total, **super().compute(sums)}


class ChoiceScorer(CrpeScorer):
    """Ours: rows are grouped by their question, answers are read by `multiple_choice.read_choice`.

    "questions" is the share of questions with all rows right, "rows" that of right rows.
    """

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("questions", *super().metrics, "rows", "unreadable")

    def is_right(self, reference: CrpeReference, answer: str) -> bool:
        return multiple_choice.read_choice(answer, reference.options) == reference.letter

    def groups(self, references: Sequence[CrpeReference]) -> Iterable[Sequence[int]]:
        groups: dict[Hashable, list[int]] = {}
        for row, reference in enumerate(references):
            groups.setdefault(reference.question, []).append(row)
        return groups.values()

    def count(self, references: Sequence[CrpeReference], answers: Sequence[str]) -> np.ndarray:
        """[n, categories, 5]: as `CrpeScorer.count`, then whether a row is right, unreadable, and 1."""
        letters = [
            multiple_choice.read_choice(answer, reference.options)
            for reference, answer in zip(references, answers, strict=True)
        ]
        rows = [
            (letter == reference.letter, not letter, 1)
            for letter, reference in zip(letters, references, strict=True)
        ]
        return self.add_columns(super().count(references, answers), references, rows)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        questions_right, questions, right, unreadable, rows = np.moveaxis(sums.sum(-2), -1, 0)
        return {
            "questions": ratio(questions_right, questions),
            **super().compute(sums),
            "rows": ratio(right, rows),
            "unreadable": ratio(unreadable, rows),
        }


def read_lmms_eval(answer: str, options: Sequence[str]) -> str:
    """What lmms-eval compares with the right letter: a letter, or what is left of an answer.

    Blocks of reasoning go, the last `<answer>` is taken, all punctuation is deleted. Then the text of an
    option anywhere, in its own capitals, is that option: "None" is "on". "T-shirt" is never found, since the
    option keeps its hyphen, and letters are not taken from sentences.
    """
    text = choice_readers.strip_lmms_eval(answer, ("think", "thought"))
    text = re.sub(r"[^\w\s]", "", _last_marked(text)).strip()
    places = [(text.find(option), index) for index, option in enumerate(options) if option in text]
    return _LETTERS[min(places)[1]] if places else text


def _last_marked(text: str) -> str:
    """What stands in the last `<answer>` that is closed; the whole text without one."""
    inside, end = text, 0
    while (start := text.find("<answer>", end)) >= 0 and (end := text.find("</answer>", start)) >= 0:
        inside = text[start + len("<answer>") : end]
    return inside


def scorers(categories: Sequence[str]) -> tuple[CrpeScorer, ...]:
    """All rules for questions of these categories."""
    ordered = tuple(category for category in CATEGORIES if category in categories)
    kit = "VLMEvalKit e8e78f0, if its table's answers are"
    return (
        OfficialScorer("official", "OpenGVLab/all-seeing 5cb8cea eval_crpe.py", ordered),
        VlmEvalKitScorer("vlmevalkit-letter", f"{kit} letters", ordered),
        VlmEvalKitScorer("vlmevalkit-text", f"{kit} letters and texts", ordered, with_text=True),
        LmmsEvalScorer("lmms-eval", "lmms-eval 75571cf crpe_relation", ordered),
        ChoiceScorer("regaze", "2", ordered),
    )
