"""R-Bench's scorers: the released rule over five subsets, and ours over all questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import REGAZE as YES_NO
from regaze.eval.benchmarks.common.yes_no import YesNoScorer, confusion, read_pope

SUBSETS = 5
_TINY = 1e-5


@dataclass(frozen=True)
class RBenchReference:
    """A question.

    Attributes:
        label: "yes" or "no".
        subsets: How often each of the five subsets lists it; empty where there are no files of subsets.
        scene: The image, also of a question about a marked copy.
        subject, thing: What is marked, of an instance-level question.
        sub_box, obj_box: Their left, upper, right and lower edges in fractions of width and height.
    """

    label: str
    subsets: tuple[int, ...] = ()
    scene: str = ""
    subject: str = ""
    thing: str = ""
    sub_box: tuple[float, ...] = ()
    obj_box: tuple[float, ...] = ()


@dataclass(frozen=True)
class SubsetScorer(Scorer):
    """The released rule: POPE's reading, 1e-5 in denominators, the mean of the figures of five subsets.

    A perfect answer sheet is therefore just below 1 in precision, recall and F1. Questions that no subset
    lists do not count; without files of subsets all questions are one subset.
    """

    name: str = "official"
    version: str = "mrwu-mac/R-Bench d9d73c0 eval.py"
    metrics: tuple[str, ...] = ("accuracy", "precision", "recall", "f1", "yes_ratio")

    def count(self, references: Sequence[RBenchReference], answers: Sequence[str]) -> np.ndarray:
        """[n, 1 + 5, 2 labels, 2 readings]: each question once, then as often as each subset lists it."""
        each = confusion([r.label for r in references], self.readings(references, answers))[..., :2]
        subsets = [r.subsets or (1,) + (0,) * (SUBSETS - 1) for r in references]
        times = np.array([(1, *listed) for listed in subsets], np.int64)
        return each[:, None] * times[:, :, None, None]

    def readings(self, references: Sequence[RBenchReference], answers: Sequence[str]) -> list[str]:
        return [read_pope(answer) for answer in answers]

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        figures = self._per_subset(sums)
        there = ~np.isnan(figures["accuracy"])
        return {
            name: ratio(np.where(there, value, 0).sum(-1), there.sum(-1)) for name, value in figures.items()
        }

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return (counts[:, 0, 0, 0] + counts[:, 0, 1, 1]) > 0

    def details(self, sums: np.ndarray) -> dict[str, Any]:
        """The figures of each subset that has questions."""
        figures = self._per_subset(sums)
        return {
            f"subset_{i + 1}": {name: float(value[i]) for name, value in figures.items()}
            for i in range(SUBSETS)
            if not np.isnan(figures["accuracy"][i])
        }

    def _per_subset(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics, each [..., 5], of sums [..., 6, 2, 2]; nan for a subset without questions."""
        at = np.asarray(sums, np.float64)[..., 1:, :, :]
        true_positive, false_negative = at[..., 0, 0], at[..., 0, 1]
        false_positive, true_negative = at[..., 1, 0], at[..., 1, 1]
        total = at.sum((-2, -1))
        precision = true_positive / (true_positive + false_positive + _TINY)
        recall = true_positive / (true_positive + false_negative + _TINY)
        return {
            "accuracy": ratio(true_positive + true_negative, total),
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall + _TINY),
            "yes_ratio": ratio(true_positive + false_positive, total),
        }


class LabelScorer(YesNoScorer):
    """A yes/no scorer over all questions."""

    def count(self, references: Sequence[Any], answers: Sequence[str]) -> np.ndarray:
        return super().count([reference.label for reference in references], answers)


OFFICIAL = SubsetScorer()
REGAZE = LabelScorer(**vars(YES_NO))
