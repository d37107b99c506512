"""Choose the best trial of each method by a named figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark
from regaze.eval.benchmarks.common.scoring import DESCRIPTIVE
from regaze.eval.comparison import confounds
from regaze.eval.comparison.conditions import PLAIN, AnswerSet, drop_failed_clusters, scorers_of
from regaze.eval.comparison.verdicts import leading_figure
from regaze.eval.tuning.grids import Trial

TIES = "of equal trials the one that comes first in the grid"


@dataclass(frozen=True)
class Criterion:
    """A figure of a scorer, and which side of it is better. Empty names stand for the tested figure."""

    scorer: str = ""
    figure: str = ""

    @classmethod
    def named(cls, text: str | None, benchmark: Benchmark) -> Criterion:
        """The figure "f1" of the first scorer that has it, or "harness.f1"; None for the tested one.

        Raises:
            InputError: no scorer of the benchmark has it, or neither more nor less of it is better.
        """
        if text is None:
            return cls()
        scorer, _, figure = text.rpartition(".")
        if figure in DESCRIPTIVE:
            raise InputError(
                f"criterion {text}: neither more nor less of {figure} is better; name a figure that is"
            )
        there = [(each.name, metric) for each in scorers_of(benchmark) for metric in each.metrics]
        found = [pair for pair in there if pair[1] == figure and scorer in ("", pair[0])]
        if not found:
            names = dict.fromkeys(metric for _, metric in there if metric not in DESCRIPTIVE)
            scorers = dict.fromkeys(name for name, _ in there)
            raise InputError(
                f"criterion {text}: {benchmark.name} has the figures {', '.join(names)} of the scorers "
                f"{', '.join(scorers)}"
            )
        return cls(*found[0])

    def in_figures(self, figures: Mapping[str, Any], benchmark: Benchmark) -> dict[str, Any]:
        """The criterion with its split, as the results have it."""
        split = "all" if "all" in figures else next(iter(figures))
        scores = figures[split]
        names = [name for name, each in scores.items() if isinstance(each, Mapping) and PLAIN in each]
        scorer = self.scorer or names[0]
        figure = self.figure or leading_figure(scores[scorer])
        lower = {each.name: each.lower_is_better for each in scorers_of(benchmark)}.get(scorer, ())
        return {
            "split": split,
            "scorer": scorer,
            "figure": figure,
            "lower_is_better": figure in lower,
            "ties": TIES,
        }


def score_trials(
    benchmark: Benchmark,
    answers: Mapping[str, AnswerSet],
    criterion: Criterion,
    seed: int,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The figures of every condition on the questions that all of them have answers to.

    Args:
        answers: by label, the plain model's among them.

    Returns:
        What was decided by ("criterion", and the number of "questions", "images", "left_out"), and by label
        "figures" ({figure: {value, low, high}} of the scorer that decides), "difference" (of the figure that
        decides, to the plain model; null for itself), "text" and "answers_changed".

    Raises:
        InputError: no question is left to score.
    """
    failed = {index for each in answers.values() for index in each.errors}
    scored, indices = drop_failed_clusters(benchmark, failed)
    texts = {label: [each.answers[index] for index in indices] for label, each in answers.items()}
    entries: dict[str, dict[str, Any]] = {}
    used: dict[str, Any] = {}
    for label, given in texts.items():
        pair = {"plain": given} if label == PLAIN else {"plain": texts[PLAIN], "edited": given}
        figures = scored.score(pair, seed=seed)
        used = used or criterion.in_figures(figures, benchmark)
        scores = figures[used["split"]]
        compared = scores[used["scorer"]]
        entries[label] = {
            "figures": _estimates(compared["plain" if label == PLAIN else "edited"]),
            "difference": None if label == PLAIN else compared["difference"][used["figure"]],
            "text": confounds.measure(scored.items, given),
            "answers_changed": None if label == PLAIN else sum(map(str.__ne__, texts[PLAIN], given)),
        }
    about = {
        "criterion": used,
        "questions": len(scored.items),
        "images": len({image for item in scored.items for image in item.images}),
        "left_out": len(benchmark.items) - len(indices),
    }
    return about, entries


def best_trial(
    trials: Sequence[Trial], entries: Mapping[str, Mapping[str, Any]], criterion: Mapping[str, Any]
) -> Trial | None:
    """The best of a method's trials; None where none has a value.

    Args:
        entries: those of the trials that ran, by the trial's label.
        criterion: as `score_trials` returns it.
    """
    sign = -1.0 if criterion["lower_is_better"] else 1.0
    values = {
        trial.label: sign * value
        for trial in trials
        if trial.label in entries
        and (value := entries[trial.label]["figures"][criterion["figure"]]["value"]) == value
    }
    ran = [trial for trial in trials if trial.label in values]
    return max(ran, key=lambda trial: values[trial.label], default=None)  # the first of equal ones


def _estimates(figures: Mapping[str, Any]) -> dict[str, Any]:
    """{figure: {value, low, high}}, without counts."""
    return {
        name: {side: each[side] for side in ("value", "low", "high")}
        for name, each in figures.items()
        if isinstance(each, Mapping) and {"value", "low", "high"} <= each.keys()
    }
