"""BEAF's figures: how answers change where an object was taken away, and where nothing was.

Pairs are an edited image and the object that it lacks, with the same question on the original: yes, then no
is true understanding (TU), no, then yes ignorance (IG), twice yes or twice no stubbornness (SBp, SBn); each
is a share of all pairs. Indecision (ID) is the share of the questions about objects that no copy lacks whose
answer on a copy differs from the one on its original. F1_TUID is the harmonic mean of TU and 100 - ID.
Questions about what is missing from another copy only enter accuracy, precision, recall and F1. All in
percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import REGAZE as YES_NO
from regaze.eval.benchmarks.common.yes_no import confusion, read_anywhere

_PAIRS = (("yes", "no"), ("no", "yes"), ("yes", "yes"), ("no", "no"))
METRICS = ("accuracy", "precision", "recall", "f1", "TU", "IG", "SBp", "SBn", "ID", "F1_TUID")
#: What the released script asserts: questions and pairs of v0.
ASSERTED = (26_118, 1_727)


@dataclass(frozen=True)
class BeafReference:
    """A question.

    Attributes:
        scene: The original image, also of a copy.
        question: By which the question on a copy finds the one on its original.
        label: "yes" or "no".
        original: Whether it is about the original.
        removed: Whether the object is missing from some copy of the scene.
    """

    scene: str
    question: str
    label: str
    original: bool
    removed: bool

    @property
    def taken_away(self) -> bool:
        """Whether this copy lacks the object and the original has it."""
        return not self.original and self.removed and self.label == "no"


@dataclass(frozen=True)
class BeafScorer(Scorer):
    """The figures under one reading; an unreadable answer is wrong, neither yes nor no, and not positive."""

    fractions = ("unreadable",)
    lower_is_better = ("IG", "SBp", "SBn", "ID")
    name: str
    version: str
    read: Callable[[str], str]
    metrics: tuple[str, ...] = (*METRICS, "unreadable")

    def readings(self, references: Sequence[BeafReference], answers: Sequence[str]) -> list[str]:
        """Each answer as "yes", "no" or "other"."""
        return [self.read(answer) for answer in answers]

    def stops(self, references: Sequence[BeafReference], readings: Sequence[str]) -> bool:
        """Whether there are no figures at all."""
        return False

    def count(self, references: Sequence[BeafReference], answers: Sequence[str]) -> np.ndarray:
        """[n, 14]: answers by label and reading; TU, IG, SBp, SBn, pairs; changed, compared; stopped."""
        readings = self.readings(references, answers)
        counts = np.zeros((len(answers), 14), np.int64)
        counts[:, :6] = confusion([r.label for r in references], readings).reshape(-1, 6)
        counts[:, 13] = self.stops(references, readings)
        before = {
            (r.scene, r.question): reading
            for r, reading in zip(references, readings, strict=True)
            if r.original
        }
        for row, reference, reading in zip(counts, references, readings, strict=True):
            if reference.original:
                continue
            change = before[reference.scene, reference.question], reading
            if reference.taken_away:
                row[6:10] = [change == pair for pair in _PAIRS]
                row[10] = 1
            elif not reference.removed:
                row[11:13] = change[0] != change[1], 1
        return counts

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        at = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
        right, total, positive = at[0] + at[4], at[:6].sum(0), at[0] + at[3]
        precision, recall = 100 * ratio(at[0], positive), 100 * ratio(at[0], at[:3].sum(0))
        understood, undecided = 100 * ratio(at[6], at[10]), 100 * ratio(at[11], at[12])
        figures = {
            "accuracy": 100 * ratio(right, total),
            "precision": precision,
            "recall": recall,
            "f1": _harmonic(precision, recall),
            "TU": understood,
            **{name: 100 * ratio(at[7 + i], at[10]) for i, name in enumerate(("IG", "SBp", "SBn"))},
            "ID": undecided,
            "F1_TUID": _harmonic(understood, 100 - undecided),
            "unreadable": ratio(at[2] + at[5], total),
        }
        return {name: np.where(at[13] > 0, np.nan, figures[name]) for name in self.metrics}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return (counts[:, 0] + counts[:, 4]) > 0

    def details(self, sums: np.ndarray) -> dict[str, int]:
        """Numbers of pairs, of pairs by kind, and of the answers that ID compares."""
        columns = {"pairs": 10, "TU": 6, "IG": 7, "SBp": 8, "SBn": 9, "compared": 12, "changed": 11}
        return {name: int(sums[column]) for name, column in columns.items()}


class ReleasedScorer(BeafScorer):
    """The released script: an unreadable answer counts as the answer to the question before it.

    The script ends without a figure, which is nan here, where the first answer is unreadable, where no answer
    is yes (or no yes is right), and where there are other numbers of questions and pairs than in v0.
    """

    def readings(self, references: Sequence[BeafReference], answers: Sequence[str]) -> list[str]:
        readings, last = [], "other"
        for answer in answers:
            found = self.read(answer)
            last = last if found == "other" else found
            readings.append(last)
        return readings

    def stops(self, references: Sequence[BeafReference], readings: Sequence[str]) -> bool:
        counted = len(references), count_pairs(references)
        return counted != ASSERTED or readings[0] == "other"

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        figures = super().compute(sums)
        no_f1 = np.isnan(figures["f1"])
        return {name: np.where(no_f1, np.nan, value) for name, value in figures.items()}


OFFICIAL = ReleasedScorer("official", "postech-ami/BEAF 41b71d5 beaf_metric.py", read_anywhere, METRICS)
MENDED = BeafScorer("official-mended", "regaze 1, words of BEAF 41b71d5", read_anywhere)
REGAZE = BeafScorer("regaze", YES_NO.version, YES_NO.read)


def count_pairs(references: Iterable[BeafReference]) -> int:
    """The number of objects taken away."""
    return sum(reference.taken_away for reference in references)


def _harmonic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ratio(2 * a * b, a + b)
