"""The PhD Index: the harmonic mean of the share of right answers to yes-questions and to no-questions.

No scorer was released, and the index depends on how an answer is read, so there are three readings in use and
ours. An unreadable answer is wrong under each of them.

`regaze`
    Our reading of yes and no.
`first-word`
    The first word, which has to be yes or no.
`word`
    One of the words yes and no anywhere, but not both (VLMEvalKit's rule without its judge).
`substring`
    "yes" anywhere, else "no" anywhere ("know", "not").
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import REGAZE as YES_NO
from regaze.eval.benchmarks.common.yes_no import confusion, read_anywhere, read_vlmevalkit

MODES = ("base", "iac", "icc", "ccs")
#: The last is that of files that do not say their tasks.
TASKS = ("object", "attribute", "sentiment", "positional", "counting", "unknown")
_FIGURES = ("yes_recall", "no_recall", "index", "accuracy")


@dataclass(frozen=True)
class PhdReference:
    """Mode, task and right answer of a question."""

    mode: str
    task: str
    label: str


def read_leading_word(answer: str) -> str:
    """Read an answer as "yes" or "no" if that is its first word, whatever follows; else "other"."""
    word = re.search(r"[^\W_]+", answer.lower())
    return word[0] if word and word[0] in ("yes", "no") else "other"


@dataclass(frozen=True)
class PhdScorer(Scorer):
    """The index over all questions, and its mean over the tasks of each mode, under one reading."""

    accuracy_metric = "accuracy"
    name: str
    version: str
    read: Callable[[str], str]
    metrics: tuple[str, ...] = (
        *("index", "mean_index", "yes_recall", "no_recall"),
        *("accuracy", "yes_ratio", "unreadable"),
    )

    def count(self, references: Sequence[PhdReference], answers: Sequence[str]) -> np.ndarray:
        """[n, 4 modes, 6 tasks, 2 labels, 3 readings]."""
        counts = np.zeros((len(answers), len(MODES), len(TASKS), 2, 3), np.int32)
        modes = [MODES.index(r.mode) for r in references]
        tasks = [TASKS.index(r.task) for r in references]
        readings = self.readings(references, answers)
        counts[np.arange(len(answers)), modes, tasks] = confusion([r.label for r in references], readings)
        return counts

    def readings(self, references: Sequence[PhdReference], answers: Sequence[str]) -> list[str]:
        return [self.read(answer) for answer in answers]

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        sums = np.asarray(sums, np.float64)
        pooled, each = sums.sum((-4, -3)), _figures(sums)["index"]
        occurs = ~np.isnan(each)
        total = pooled.sum((-2, -1))
        figures = {
            **_figures(pooled),
            "mean_index": ratio(np.where(occurs, each, 0).sum((-2, -1)), occurs.sum((-2, -1))),
            "yes_ratio": ratio(pooled[..., 0].sum(-1), total),
            "unreadable": ratio(pooled[..., 2].sum(-1), total),
        }
        return {name: figures[name] for name in self.metrics}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return (counts[..., 0, 0] + counts[..., 1, 1]).sum((1, 2)) > 0

    def details(self, sums: np.ndarray) -> dict[str, Any]:
        """{mode: {"all" or task: {"yes_recall", "no_recall", "index", "accuracy"}}} of those that occur."""
        out: dict[str, Any] = {}
        for mode, of_mode in zip(MODES, sums, strict=True):
            parts = {"all": of_mode.sum(0), **dict(zip(TASKS, of_mode, strict=True))}
            found = {name: _plain(_figures(part)) for name, part in parts.items() if part.any()}
            if found:
                out[mode] = found
        return out


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Recalls, index and accuracy, each [...], of sums [..., 2, 3]; nan where there are no such questions."""
    asked = sums.sum(-1)
    yes, no = ratio(sums[..., 0, 0], asked[..., 0]), ratio(sums[..., 1, 1], asked[..., 1])
    index = np.where(yes + no == 0, 0.0, ratio(2 * yes * no, yes + no))
    accuracy = ratio(sums[..., 0, 0] + sums[..., 1, 1], asked.sum(-1))
    return dict(zip(_FIGURES, (yes, no, index, accuracy), strict=True))


def _plain(figures: dict[str, np.ndarray]) -> dict[str, float | None]:
    """As JSON values; None for nan."""
    return {name: None if math.isnan(value) else float(value) for name, value in figures.items()}


SCORERS = (
    PhdScorer("regaze", YES_NO.version, YES_NO.read),
    PhdScorer("first-word", "regaze 1", read_leading_word),
    PhdScorer("word", "VLMEvalKit e8e78f0, no judge", read_vlmevalkit),
    PhdScorer("substring", "regaze 1", read_anywhere),
)
