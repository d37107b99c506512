"""Scoring of yes/no answers: how an answer is read, the five figures, their intervals, the paired comparison.

Two rules are in use for POPE and disagree, so both are here under a name:

`official`
    The rule of the benchmark's own evaluation script: keep the text before the first full stop, drop commas,
    split at single spaces; "no" if one of the exact words No, no, not is left, else "yes" (so is empty text).
    A ratio with nothing below the line stops that script; here it is undefined (nan, in JSON null).
`harness`
    Exact match after lower-casing and stripping, as evaluation harnesses do ("Yes." is neither): any other
    answer is wrong, and counts neither for precision nor for recall. A ratio with nothing below the line is
    0. Its yes-ratio is that of the *labels*, not of the answers: to see a yes-bias, look at the official one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regaze.errors import InputError
from regaze.eval import statistics
from regaze.eval.benchmarks.base import Item

FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
LABELS = ("yes", "no")
READINGS = ("yes", "no", "other")
RESAMPLES = 2000


def read_official(answer: str) -> str:
    """Read an answer as the benchmark's own script does: "yes" or "no"."""
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def read_harness(answer: str) -> str:
    """Read an answer as a harness does: "yes", "no", or "other" for all that is neither exactly."""
    word = answer.lower().strip()
    return word if word in LABELS else "other"


def confusion(labels: Sequence[str], readings: Sequence[str]) -> np.ndarray:
    """One count per item: [n, 2 labels, 3 readings], in the order of LABELS and READINGS."""
    counts = np.zeros((len(labels), len(LABELS), len(READINGS)), dtype=np.int64)
    rows = np.arange(len(labels))
    counts[rows, [LABELS.index(x) for x in labels], [READINGS.index(x) for x in readings]] = 1
    return counts


def _ratio(above: np.ndarray, below: np.ndarray, undefined: float) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), undefined), where=below != 0)


@dataclass(frozen=True)
class Scorer:
    """A named rule: how an answer is read, and what is done where a ratio is undefined."""

    name: str
    read: Callable[[str], str]
    undefined: float
    yes_ratio_of_labels: bool

    def figures(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The five figures, each [...], of summed counts [..., 2, 3]; "yes" is the positive class."""
        counts = counts.astype(np.float64)
        true_positive, false_negative = counts[..., 0, 0], counts[..., 0, 1]
        false_positive, true_negative = counts[..., 1, 0], counts[..., 1, 1]
        total = counts.sum((-2, -1))
        precision = _ratio(true_positive, true_positive + false_positive, self.undefined)
        recall = _ratio(true_positive, true_positive + false_negative, self.undefined)
        yes = counts[..., 0, :].sum(-1) if self.yes_ratio_of_labels else counts[..., :, 0].sum(-1)
        return {
            "accuracy": _ratio(true_positive + true_negative, total, self.undefined),
            "precision": precision,
            "recall": recall,
            "f1": _ratio(2 * precision * recall, precision + recall, self.undefined),
            "yes_ratio": _ratio(yes, total, self.undefined),
        }

    def score(self, labels: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
        """The five figures of answers to questions with these labels ("yes" or "no"), without intervals.

        Raises:
            InputError: no answers, or not as many as labels (the official script drops the surplus silently).
        """
        if len(labels) != len(answers) or not labels:
            raise InputError(
                f"{len(answers)} answers for {len(labels)} labels; expected one each, at least one"
            )
        counts = confusion(labels, [self.read(answer) for answer in answers]).sum(0)
        return {name: float(value) for name, value in self.figures(counts).items()}


OFFICIAL = Scorer("official", read_official, undefined=math.nan, yes_ratio_of_labels=False)
HARNESS = Scorer("harness", read_harness, undefined=0.0, yes_ratio_of_labels=True)
SCORERS = (OFFICIAL, HARNESS)


def compare(
    scorer: Scorer, items: Sequence[Item], answers: Mapping[str, Sequence[str]], *, seed: int
) -> dict[str, Any]:
    """Figures of each condition with 95 % intervals; for "plain" and "edited" also their difference.

    Accuracy has a Wilson interval and its difference Newcombe's paired one; all else a percentile bootstrap
    over images, with the same draws for both conditions; of a single image there is nothing to draw (nan). A
    difference is edited - plain.
    """
    labels = [item.label for item in items]
    per_item = {
        name: confusion(labels, [scorer.read(answer) for answer in given]) for name, given in answers.items()
    }
    point = {name: scorer.figures(counts.sum(0)) for name, counts in per_item.items()}
    drawn = {
        name: scorer.figures(
            statistics.bootstrap_sums(_per_image(counts, items), resamples=RESAMPLES, seed=seed)
        )
        for name, counts in per_item.items()
    }
    out: dict[str, Any] = {}
    for name, counts in per_item.items():
        accuracy = statistics.wilson(int(_correct(counts).sum()), len(items))
        out[name] = _estimates(point[name], drawn[name], accuracy)
        out[name]["counts"] = _named(counts.sum(0))
    if {"plain", "edited"} <= per_item.keys():
        plain, edited = _correct(per_item["plain"]), _correct(per_item["edited"])
        only_plain, only_edited = int((plain & ~edited).sum()), int((~plain & edited).sum())
        both, neither = int((plain & edited).sum()), int((~plain & ~edited).sum())
        out["difference"] = {
            **_estimates(
                {figure: point["edited"][figure] - point["plain"][figure] for figure in FIGURES},
                {figure: drawn["edited"][figure] - drawn["plain"][figure] for figure in FIGURES},
                statistics.paired_difference(both, only_plain, only_edited, neither),
            ),
            "only_plain_correct": only_plain,
            "only_edited_correct": only_edited,
            "mcnemar_p": statistics.mcnemar(only_plain, only_edited),
        }
    return out


def _correct(counts: np.ndarray) -> np.ndarray:
    """Whether each item of counts [n, 2, 3] was read as its label: bool [n]."""
    return (counts[:, 0, 0] + counts[:, 1, 1]).astype(bool)


def _per_image(counts: np.ndarray, items: Sequence[Item]) -> np.ndarray:
    """Counts per item [n, 2, 3] summed over the questions of each image: [images, 2, 3]."""
    _, image_of = np.unique([str(item.image) for item in items], return_inverse=True)
    sums = np.zeros((image_of.max() + 1, *counts.shape[1:]), dtype=counts.dtype)
    np.add.at(sums, image_of, counts)
    return sums


def _estimates(
    point: Mapping[str, np.ndarray], drawn: Mapping[str, np.ndarray], accuracy: tuple[float, float]
) -> dict[str, Any]:
    """{figure: {value, low, high}} from points, their replicates, and the interval of the accuracy."""
    out = {}
    for figure in FIGURES:
        value = float(point[figure])
        defined = not math.isnan(value)
        interval = statistics.percentile_interval(drawn[figure]) if defined else (math.nan, math.nan)
        low, high = accuracy if figure == "accuracy" else interval
        out[figure] = {"value": value, "low": low, "high": high}
    return out


def _named(sums: np.ndarray) -> dict[str, dict[str, int]]:
    """Summed counts [2, 3] with names: {"label_yes": {"yes": 1, "no": 2, "other": 0}, "label_no": ...}."""
    return {
        f"label_{label}": {reading: int(sums[i, j]) for j, reading in enumerate(READINGS)}
        for i, label in enumerate(LABELS)
    }
