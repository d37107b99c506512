"""Scoring of one set of answers by two sets of labels: POPE's, and RePOPE's corrected ones.

A scorer's figures under RePOPE's labels have their usual names; those under POPE's begin with "pope_", and
those that end in "_shift" are RePOPE's minus POPE's. All three come from the same counts, so that an interval
of a shift pairs the label sets by answer and draws the same images for both; and the difference of a shift
between two conditions says by how much the gain of one over the other depends on the labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import METRICS, SCORERS, YesNoScorer, read_anywhere

#: Without the yes-ratio, which labels move only by the questions that are dropped.
SHIFTED = ("accuracy", "precision", "recall", "f1")


@dataclass(frozen=True)
class Labels:
    """The right answers to a question of POPE.

    Attributes:
        pope: "yes" or "no".
        repope: "yes" or "no"; None where RePOPE dropped the question as ambiguous, or does not have it.
    """

    pope: str
    repope: str | None


class ReadableAnswersScorer(YesNoScorer):
    """RePOPE's own rule: an unreadable answer enters none of the figures.

    Its script stops at a division by zero, so where precision, recall or F1 has none the other figures are
    undefined, too. "unreadable", the share of answers that were left out, is ours.
    """

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        readable = sums.copy()
        readable[..., 2] = 0
        figures = super().compute(readable)
        stops = np.isnan(figures["f1"])
        out = {name: np.where(stops, math.nan, figure) for name, figure in figures.items()}
        out["unreadable"] = ratio(sums[..., 2].sum(-1), sums.sum((-2, -1)))
        return {name: out[name] for name in self.metrics}


class LabelSetsScorer(Scorer):
    """A yes/no scorer under both label sets; references are `Labels`."""

    def __init__(self, scorer: YesNoScorer) -> None:
        self.scorer, self.name, self.version = scorer, scorer.name, scorer.version
        self.metrics = (
            *scorer.metrics,
            *(f"pope_{metric}" for metric in METRICS),
            *(f"{metric}_shift" for metric in SHIFTED),
        )

    def count(self, references: Sequence[Labels], answers: Sequence[str]) -> np.ndarray:
        """[n, 2 label sets (POPE's, RePOPE's), 2 labels, 3 readings]."""
        shipped = self.scorer.count([each.pope for each in references], answers)
        corrected = self.scorer.count([each.repope or each.pope for each in references], answers)
        corrected[[each.repope is None for each in references]] = 0
        return np.stack([shipped, corrected], axis=1)

    def readings(self, references: Sequence[Labels], answers: Sequence[str]) -> list[str]:
        """As the scorer reads them; where its reading looks at the label, under RePOPE's."""
        return self.scorer.readings([each.repope or each.pope for each in references], answers)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The figures, each [...], of summed counts [..., 2, 2, 3]."""
        shipped, corrected = (self.scorer.compute(sums[..., place, :, :]) for place in (0, 1))
        return {
            **corrected,
            **{f"pope_{metric}": shipped[metric] for metric in METRICS},
            **{f"{metric}_shift": corrected[metric] - shipped[metric] for metric in SHIFTED},
        }

    def correct(self, counts: np.ndarray) -> np.ndarray | None:
        """Which answers RePOPE's labels call right; None where accuracy is no share of all answers."""
        if isinstance(self.scorer, ReadableAnswersScorer):
            return None
        return self.scorer.correct(counts[:, 1])

    def details(self, sums: np.ndarray) -> dict[str, dict[str, dict[str, int]]]:
        """{"repope": counts as `YesNoScorer.details`, "pope": likewise}."""
        return {"repope": self.scorer.details(sums[1]), "pope": self.scorer.details(sums[0])}


class CorrectedScorer(LabelSetsScorer):
    """The same under RePOPE's labels alone, of answers to the questions that have one."""

    def __init__(self, scorer: YesNoScorer) -> None:
        super().__init__(scorer)
        self.metrics = scorer.metrics

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {name: figure for name, figure in super().compute(sums).items() if name in self.metrics}

    def details(self, sums: np.ndarray) -> dict[str, dict[str, dict[str, int]]]:
        return {"repope": super().details(sums)["repope"]}


REPOPE = ReadableAnswersScorer(
    "repope", "YanNeu/RePOPE bcf22e5 eval_utils.py", read_anywhere, metrics=(*METRICS, "unreadable")
)
#: RePOPE's own rule, ours, and the others that are in use for POPE.
_RULES = (REPOPE, *sorted(SCORERS, key=lambda scorer: scorer.name != "regaze"))
LABEL_SETS_SCORERS = tuple(LabelSetsScorer(scorer) for scorer in _RULES)
CORRECTED_SCORERS = tuple(CorrectedScorer(scorer) for scorer in _RULES)
