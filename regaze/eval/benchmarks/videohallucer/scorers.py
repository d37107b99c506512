"""VideoHallucer's figures: shares of right basic answers, of right answers to the other side, of right pairs.

Over several sets each figure is the mean of those of the sets, as in the published table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import READINGS
from regaze.eval.benchmarks.common.yes_no import REGAZE as YES_NO

#: The sets of the published table; `interaction` and `fact_detect` are beside it.
TABLE = ("object_relation", "temporal", "semantic_detail", "external_factual", "external_nonfactual")
SETS = (*TABLE, "interaction", "fact_detect")
SIDES = ("basic", "hallucination")


@dataclass(frozen=True)
class VideoReference:
    """A question: its set, the number of its pair there, its side of the pair, the right answer.

    Attributes:
        scene: What the pair shares a video with, directly or through other pairs.
    """

    set: str
    pair: int
    side: str
    label: str
    scene: int = 0


def has_word(word: str, answer: str) -> bool:
    """Whether an answer has a word anywhere, in any capitalisation."""
    return re.search(rf"\b({re.escape(word)})\b", answer, re.IGNORECASE) is not None


@dataclass(frozen=True)
class PairScorer(Scorer):
    """Base of the scorers; a pair of which one side is absent counts as no pair."""

    name: str
    version: str
    metrics: tuple[str, ...] = ("accuracy", "basic_accuracy", "halluc_accuracy")

    def is_right(self, label: str, answer: str) -> bool:
        raise NotImplementedError

    def reading(self, answer: str) -> str:
        """yes, no, or other; only of scorers that report these."""
        return "other"

    def count(self, references: Sequence[VideoReference], answers: Sequence[str]) -> np.ndarray:
        """[n, 7 sets, 9]: right and all of the basic side, of the other, of pairs; answers by reading."""
        counts = np.zeros((len(answers), len(SETS), 9), np.int64)
        pairs: dict[tuple[str, int], list[int]] = {}
        for row, (reference, answer) in enumerate(zip(references, answers, strict=True)):
            side = 2 * SIDES.index(reference.side)
            at = counts[row, SETS.index(reference.set)]
            at[side : side + 2] = self.is_right(reference.label, answer), 1
            at[6 + READINGS.index(self.reading(answer))] = 1
            pairs.setdefault((reference.set, reference.pair), []).append(row)
        for (of_set, _), rows in pairs.items():
            if len(rows) == 2:
                each = counts[rows, SETS.index(of_set)]
                counts[rows[0], SETS.index(of_set), 4:6] = each[:, [0, 2]].sum() == 2, 1
        return counts

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        at = np.moveaxis(np.asarray(sums, np.float64), -1, 0)  # [9, ..., sets]
        answers = at[6:].sum((0, -1))
        figures = {
            "accuracy": _mean(at[4], at[5]),
            "basic_accuracy": _mean(at[0], at[1]),
            "halluc_accuracy": _mean(at[2], at[3]),
            "yes_ratio": ratio(at[6].sum(-1), answers),
            "unreadable": ratio(at[8].sum(-1), answers),
        }
        return {name: figures[name] for name in self.metrics}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return counts[..., [0, 2]].sum((1, 2)) > 0

    def details(self, sums: np.ndarray) -> dict[str, Any]:
        """{set: {"pairs", "right_pairs", "right_basic", "right_hallucination"}} of those that occur."""
        columns = {"pairs": 5, "right_pairs": 4, "right_basic": 0, "right_hallucination": 2}
        return {
            of_set: {name: int(row[column]) for name, column in columns.items()}
            for of_set, row in zip(SETS, sums, strict=True)
            if row.any()
        }


class ReleasedScorer(PairScorer):
    """The released rule: the right answer as a word anywhere, so that "Yes and no" is right on both sides."""

    def is_right(self, label: str, answer: str) -> bool:
        return has_word(label, answer)

    def readings(self, references: Sequence[VideoReference], answers: Sequence[str]) -> list[str]:
        """The right answer where it occurs, else the other one."""
        opposite = {"yes": "no", "no": "yes"}
        return [
            next((word for word in (each.label, opposite[each.label]) if has_word(word, answer)), "other")
            for each, answer in zip(references, answers, strict=True)
        ]


@dataclass(frozen=True)
class ReadingScorer(PairScorer):
    """Answers read as yes or no; unreadable ones are wrong."""

    read: Callable[[str], str] = YES_NO.read
    metrics: tuple[str, ...] = (*PairScorer.metrics, "yes_ratio", "unreadable")

    def is_right(self, label: str, answer: str) -> bool:
        return self.read(answer) == label

    def reading(self, answer: str) -> str:
        return self.read(answer)

    def readings(self, references: Sequence[VideoReference], answers: Sequence[str]) -> list[str]:
        return [self.read(answer) for answer in answers]


OFFICIAL = ReleasedScorer("official", "patrick-tssn/VideoHallucer ae4c2f2 evaluation_utils.py")
REGAZE = ReadingScorer("regaze", YES_NO.version)


def _mean(right: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The mean share over the sets that were asked, each [..., sets]."""
    shares = ratio(right, asked, 0.0)
    return ratio(shares.sum(-1), (asked > 0).sum(-1))
