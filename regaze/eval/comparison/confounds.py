"""What can feign a gain: shorter answers, repetition, a taste for yes, answers nobody can read, more
computation.

Fewer hallucinated objects in shorter captions, or a better recall from a model that says yes to everything,
are no better sight. These figures stand beside every score, and a change beyond its threshold is named in the
table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.common.yes_no import LABELS, read_first_word
from regaze.eval.cost import Cost


class Threshold(NamedTuple):
    """How far a figure may move from that of the plain model before it is named.

    Attributes:
        bound: largest change that is not named. relative: in proportion to the plain model's figure.
        says: from both figures to what the table says.
    """

    bound: float
    relative: bool
    says: Callable[[float, float], str]


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
    "forwards_per_token": Threshold(0.25, True, lambda plain, edited: f"{edited:.1f} forwards per token"),
    "peak_mib": Threshold(0.25, True, lambda plain, edited: f"memory {edited / plain - 1:+.0%}"),
}


def measure(items: Sequence[Item], answers: Sequence[str]) -> dict[str, float]:
    """Figures of the answers' texts; nan where there is nothing to measure.

    words: mean length. repeated_4grams: share of 4-grams of words that occurred before in the same answer.
    empty: share of answers without a word. Where all labels are yes or no, as strictly read: yes_ratio and
    unreadable, the shares of answers that begin with yes, and that are neither.
    """
    words = [answer.lower().split() for answer in answers]
    grams = [[tuple(text[i : i + 4]) for i in range(len(text) - 3)] for text in words]
    repeated = sum(len(each) - len(set(each)) for each in grams)
    out = {
        "words": _share(sum(map(len, words)), len(words)),
        "repeated_4grams": _share(repeated, sum(map(len, grams))),
        "empty": _share(sum(not text for text in words), len(words)),
    }
    if items and all(item.label in LABELS for item in items):
        readings = [read_first_word(answer) for answer in answers]
        out["yes_ratio"] = _share(readings.count("yes"), len(readings))
        out["unreadable"] = _share(readings.count("other"), len(readings))
    return out


def flags(
    plain: Mapping[str, float], edited: Mapping[str, float], plain_cost: Cost, edited_cost: Cost
) -> list[str]:
    """What changed by more than its threshold, in words."""
    before, after = ({**text, **_costs(cost)} for text, cost in ((plain, plain_cost), (edited, edited_cost)))
    found = []
    for name, (bound, relative, says) in THRESHOLDS.items():
        a, b = before.get(name), after.get(name)
        if a is None or b is None or math.isnan(a) or math.isnan(b) or (relative and not a):
            continue
        if abs(b - a) > bound * (a if relative else 1.0):
            found.append(says(a, b))
    return found


def _costs(cost: Cost) -> dict[str, Any]:
    return {"forwards_per_token": cost.forwards_per_token, "peak_mib": cost.peak_mib}


def _share(above: float, below: float) -> float:
    return above / below if below else math.nan
