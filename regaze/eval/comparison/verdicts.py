"""Whether a method beats the best of its controls.

Doing nothing is a control, too: a method that is better than its other controls, but not than the plain
model, has nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from regaze.eval.stats import estimators

#: Level of the test, after Holm's correction.
LEVEL = 0.05
#: From the labels of two conditions to their figures, those of the second as "edited".
Score = Callable[[str, str], Mapping[str, Any]]


def against_controls(
    label: str,
    method: Mapping[str, Any],
    controls: Mapping[str, Mapping[str, Any]],
    lower_is_better: Mapping[str, Sequence[str]],
    score: Score,
    plain: str,
) -> dict[str, dict[str, Any]]:
    """{split: {scorer: a method's tested figure minus that of the best of its controls}}.

    Args:
        method: its results. controls: those of its controls, by label.
        lower_is_better: {scorer: its figures of which less is better}.
        plain: the label of the plain model, which is one of them.

    Returns:
        Per scorer "best" (its label), "figure", "value", "low" and "high" of the difference, "better"
        (whether it is in the method's favour), "p", and what `add_verdicts` sets: "holm_p" and "beats".
    """
    out: dict[str, dict[str, Any]] = {}
    for split, scores in method["figures"].items():
        for scorer, compared in scores.items():
            if not (isinstance(compared, Mapping) and "difference" in compared):
                continue
            figure = leading_figure(compared)
            sign = -1.0 if figure in lower_is_better.get(scorer, ()) else 1.0
            values = {
                name: sign * entry["figures"][split][scorer]["edited"][figure]["value"]
                for name, entry in controls.items()
            }
            values[plain] = sign * compared["plain"][figure]["value"]
            defined = {name: value for name, value in values.items() if value == value}
            if not defined:
                continue
            best = max(defined, key=lambda name: defined[name])
            difference = score(best, label)[split][scorer]["difference"]
            estimate = {side: difference[figure][side] for side in ("value", "low", "high")}
            better = sign * estimate["value"] > 0
            verdict = {"best": best, "figure": figure, **estimate, "better": better, "p": p_value(difference)}
            out.setdefault(split, {})[scorer] = {**verdict, "holm_p": None, "beats": False}
    return out


def add_verdicts(compared: Iterable[Mapping[str, Any]]) -> None:
    """Set "holm_p", corrected over the methods per split and scorer, and "beats" in their comparisons."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for method in compared:
        for split, scores in method.items():
            for scorer, verdict in scores.items():
                families.setdefault((split, scorer), []).append(verdict)
    for verdicts in families.values():
        tested = [verdict for verdict in verdicts if verdict["p"] is not None]
        for verdict, p in zip(tested, estimators.holm([each["p"] for each in tested]), strict=True):
            verdict["holm_p"] = p
            verdict["beats"] = verdict["better"] and verdict["holm_p"] < LEVEL


def leading_figure(compared: Mapping[str, Any]) -> str:
    """The figure whose difference is tested: the share of right answers, else the first one."""
    share = compared.get("statistics", {}).get("share")
    return str(share if share else next(iter(compared["plain"])))


def p_value(difference: Mapping[str, Any]) -> float | None:
    """The p-value of a difference, from whichever test was used; None where there is none."""
    for name in ("mcnemar_p", "permutation_p"):
        p = difference.get(name)
        if p is not None and p == p:
            return float(p)
    return None
