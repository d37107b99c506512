"""How far the scorers of yes/no answers disagree: on answers, and on whether a method helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regaze.eval.benchmarks.common.scoring import Scorer


def scorer_disagreement(
    scorers: Sequence[Scorer],
    references: Sequence[Any],
    answers: Mapping[str, Sequence[Any]],
    figures: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What the scorers that read yes/no answers make of the same ones; {} for fewer than two of these.

    Args:
        answers: By condition. figures: By scorer, as `scoring.compare` gives them.

    Returns:
        "scorers": their names. "answers": {condition: {"different": answers that not all read alike,
        "opposite": those of them that one reads as yes and another as no}}. Where the figures have a
        difference, "better", "worse" and "equal": the scorers by whose tested figure "edited" is so, and
        "sign_depends": whether it is better by one and worse by another.
    """
    readings = {
        scorer.name: [scorer.readings(references, given) for given in answers.values()] for scorer in scorers
    }
    named = [scorer for scorer in scorers if all(read is not None for read in readings[scorer.name])]
    if len(named) < 2:
        return {}
    counts = {
        condition: _count(np.array([readings[scorer.name][place] for scorer in named]))
        for place, condition in enumerate(answers)
    }
    out: dict[str, Any] = {"scorers": [scorer.name for scorer in named], "answers": counts}
    if all("difference" in figures[scorer.name] for scorer in named):
        signs = {scorer.name: _sign(scorer, figures[scorer.name]) for scorer in named}
        for name, sign in (("better", 1), ("worse", -1), ("equal", 0)):
            out[name] = [scorer for scorer, found in signs.items() if found == sign]
        out["sign_depends"] = bool(out["better"] and out["worse"])
    return out


def _count(readings: np.ndarray) -> dict[str, int]:
    """Numbers of answers read differently and as opposites, of readings [scorers, answers]."""
    different = (readings != readings[:1]).any(0)
    opposite = (readings == "yes").any(0) & (readings == "no").any(0)
    return {"different": int(different.sum()), "opposite": int(opposite.sum())}


def _sign(scorer: Scorer, compared: Mapping[str, Any]) -> int | None:
    """1 where the tested figure of "edited" is better, -1 where it is worse; None where it is undefined."""
    figure = compared["statistics"]["share"] or scorer.metrics[0]
    value = compared["difference"][figure]["value"]
    if value != value:
        return None
    return int(np.sign(value)) * (-1 if figure in scorer.lower_is_better else 1)
