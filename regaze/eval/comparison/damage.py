"""Whether a method broke the model: its loss on questions that have nothing to do with hallucination.

A method that hallucinates less may also see and reason less. The check asks multiple-choice questions
(MMStar, or such ones about the demo's scenes) beside the benchmarks, plain and under each method. A loss is
damage where its interval lies below zero and its test agrees, as exact tests of few changed answers may not.
It is not corrected for the number of methods: a warning too many costs less than one too few.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regaze.eval.comparison.verdicts import leading_figure, p_value

#: What it cannot read is wrong under this scorer, so that a model that only babbles has lost.
SCORER = "regaze"
#: Level of the test.
LEVEL = 0.05


def check_damage(benchmarks: Mapping[str, Mapping[str, Any]], name: str, added: bool) -> dict[str, Any]:
    """What `results.DamageResults` holds; each damaged method is flagged in the other benchmarks, too.

    Args:
        benchmarks: the results of all. name: the one that is the check.
        added: it was asked for the check alone.
    """
    checked = benchmarks[name]
    split, scorer = _which(checked["plain"]["figures"])
    plain = checked["plain"]["figures"][split]
    figure = leading_figure(plain[scorer])
    methods = {
        label: {"error": entry["error"]}
        if entry.get("error")
        else _loss(entry["figures"][split][scorer], figure)
        for label, entry in checked["methods"].items()
    }
    for other, benchmark in benchmarks.items():
        for label, entry in benchmark["methods"].items() if other != name else ():
            if methods.get(label, {}).get("damaged") and not entry.get("error"):
                loss = 100 * methods[label]["difference"]["value"]
                entry["flags"] = [*entry["flags"], f"damage: {name} {loss:+.1f} points"]
    return {
        "benchmark": name,
        "added": added,
        "split": split,
        "scorer": scorer,
        "figure": figure,
        "questions": plain["questions"],
        "plain": _estimate(plain[scorer]["plain"][figure]),
        "methods": methods,
    }


def _which(figures: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The split and the scorer that decide: all questions, ours if it is there."""
    split = "all" if "all" in figures else next(iter(figures))
    names = [name for name, scores in figures[split].items() if isinstance(scores, Mapping)]
    return split, SCORER if SCORER in names else names[0]


def _loss(compared: Mapping[str, Any], figure: str) -> dict[str, Any]:
    difference = compared["difference"]
    high, p = difference[figure]["high"], p_value(difference)
    return {
        "value": _estimate(compared["edited"][figure]),
        "difference": _estimate(difference[figure]),
        "detectable": difference[figure].get("detectable"),
        "p": p,
        "damaged": bool(high < 0.0 and (p is None or p < LEVEL)),  # nan is none
    }


def _estimate(value: Mapping[str, Any]) -> dict[str, float]:
    return {side: value[side] for side in ("value", "low", "high")}
