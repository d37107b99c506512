"""Confounds: shorter answers, repetition, a bias towards yes, unreadable or unfinished answers, computation.

Fewer hallucinated objects in shorter captions, or a higher recall of a model that says yes to everything, is
not better vision. These figures are reported with every score, and a change beyond its threshold is flagged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.common.final_answer import is_cut_in_thinking, without_thinking
from regaze.eval.benchmarks.common.scoring import Scorer, compare, ratio
from regaze.eval.benchmarks.common.yes_no import LABELS
from regaze.eval.benchmarks.common.yes_no_reading import read_yes_no
from regaze.eval.cost import Cost


class Threshold(NamedTuple):
    """The largest change from the plain model that is not flagged.

    Attributes:
        bound: of the change. relative: whether in proportion to the plain model's figure.
        describe: text of the flag, from the figures of the plain and the edited model.
    """

    bound: float
    relative: bool
    describe: Callable[[float, float], str]


THRESHOLDS: dict[str, Threshold] = {
    "words": Threshold(0.10, True, lambda plain, edited: f"length {edited / plain - 1:+.0%}"),
    "repeated_4grams": Threshold(
        0.02, False, lambda plain, edited: f"repetition {100 * (edited - plain):+.1f} points"
    ),
    "yes_ratio": Threshold(
        0.05, False, lambda plain, edited: f"yes-ratio {100 * (edited - plain):+.1f} points"
    ),
    "unreadable": Threshold(
        0.01, False, lambda plain, edited: f"unreadable {100 * (edited - plain):+.1f} points"
    ),
    "cut_in_thinking": Threshold(
        0.01, False, lambda plain, edited: f"cut in thinking {100 * (edited - plain):+.1f} points"
    ),
    "forwards_per_token": Threshold(0.25, True, lambda plain, edited: f"{edited:.1f} forwards per token"),
    "peak_mib": Threshold(0.25, True, lambda plain, edited: f"memory {edited / plain - 1:+.0%}"),
}


def measure(items: Sequence[Item], answers: Sequence[str]) -> dict[str, float]:
    """Statistics of the answers' texts without their thinking; nan where there is nothing to measure.

    words: mean length. repeated_4grams: share of 4-grams of words that occurred before in the same answer.
    empty: share of answers without a word. cut_in_thinking: share of answers that end within the thinking.
    Where all labels are yes or no also yes_ratio and unreadable: the shares of answers read as yes, and as
    neither.
    """
    words = [without_thinking(answer).lower().split() for answer in answers]
    grams = [[tuple(text[i : i + 4]) for i in range(len(text) - 3)] for text in words]
    repeated = sum(len(each) - len(set(each)) for each in grams)
    out = {
        "words": _share(sum(map(len, words)), len(words)),
        "repeated_4grams": _share(repeated, sum(map(len, grams))),
        "empty": _share(sum(not text for text in words), len(words)),
        "cut_in_thinking": _share(count_cut(answers), len(answers)),
    }
    if items and all(item.label in LABELS for item in items):
        readings = [read_yes_no(answer) for answer in answers]
        out["yes_ratio"] = _share(readings.count("yes"), len(readings))
        out["unreadable"] = _share(readings.count("other"), len(readings))
    return out


class _Words(Scorer):
    """The mean number of words."""

    name, version, metrics = "words", "1", ("words",)

    def count(self, references: Sequence[Any], answers: Sequence[str]) -> np.ndarray:
        return np.array([(len(without_thinking(answer).split()), 1) for answer in answers], np.int64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"words": ratio(sums[..., 0], sums[..., 1])}


def length(answers: Sequence[str], clusters: Sequence[Hashable], seed: int) -> dict[str, float]:
    """Mean number of words of the answers, without their thinking, and its interval: value, low, high.

    Args:
        clusters: of each answer, see `scoring.compare`.
    """
    counted = compare(_Words(), [None] * len(answers), {"plain": answers}, clusters=clusters, seed=seed)
    mean: dict[str, float] = counted["plain"]["words"]
    return mean


def count_cut(answers: Sequence[str]) -> int:
    """The number of answers that end within the thinking."""
    return sum(map(is_cut_in_thinking, answers))


def flags(
    plain: Mapping[str, float], edited: Mapping[str, float], plain_cost: Cost, edited_cost: Cost
) -> list[str]:
    """Texts of the changes beyond their thresholds."""
    before, after = (
        {**text, **_cost_figures(cost)} for text, cost in ((plain, plain_cost), (edited, edited_cost))
    )
    found = []
    for name, (bound, relative, describe) in THRESHOLDS.items():
        a, b = before.get(name), after.get(name)
        if a is None or b is None or math.isnan(a) or math.isnan(b) or (relative and not a):
            continue
        if abs(b - a) > bound * (a if relative else 1.0):
            found.append(describe(a, b))
    return found


def _cost_figures(cost: Cost) -> dict[str, Any]:
    return {"forwards_per_token": cost.forwards_per_token, "peak_mib": cost.peak_mib}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
