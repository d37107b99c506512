"""Compare conditions: figures of the plain model and of each method, paired differences, confounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark, cluster_of, with_items
from regaze.eval.comparison import confounds
from regaze.eval.comparison.verdicts import Score, add_verdicts, against_controls, p_value
from regaze.eval.cost import Cost
from regaze.eval.stats import estimators

#: the label of the condition without a method
PLAIN = "plain"


@dataclass(frozen=True)
class AnswerSet:
    """The answers to one benchmark under one condition.

    Attributes:
        answers: one per item, "" for an item without an answer.
        errors: {item index: reason} for those items.
        num_requests: distinct requests behind the answers; 0 when the answers come from a file.
        cost: of the answers. sharing: None where prefixes were shared, else the reason why not.
    """

    answers: tuple[str, ...]
    errors: Mapping[int, str] = field(default_factory=dict)
    num_requests: int = 0
    cost: Cost = field(default_factory=Cost)
    sharing: str | None = None


def compare_conditions(
    benchmark: Benchmark,
    conditions: Mapping[str, AnswerSet],
    refused: Mapping[str, str],
    seed: int,
    controls: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """{"plain": ..., "methods": {label: ...}, "controls": ...}, each value as `results.ConditionResults`.

    Args:
        conditions: answers by label, the plain model among them. A method or control of which no answer is
            left beside the plain model's has an error.
        refused: {label: reason} of methods that could not run.
        controls: {label of each method: labels of its controls}; None: all but the plain model are methods.

    Raises:
        InputError: no question is left to score of the plain model, or of all methods.
    """
    if PLAIN in refused:
        raise InputError(f"{benchmark.name}: the plain model cannot be asked: {refused[PLAIN]}")
    plain = conditions[PLAIN]
    alone = _score_alone(benchmark, plain, seed)
    edited = {label: answers for label, answers in conditions.items() if label != PLAIN}
    empty = {
        label: reason for label, each in edited.items() if (reason := _nothing_left(benchmark, plain, each))
    }
    if controls is None and empty and len(empty) == len(edited):
        raise InputError(next(iter(empty.values())))
    refused = {**refused, **empty}
    scored = {
        label: _score_against(benchmark, plain, each, seed)
        for label, each in edited.items()
        if label not in empty
    }
    methods = {label: entry for label, entry in scored.items() if controls is None or label in controls}
    _add_holm_p([entry["figures"] for entry in methods.values()])
    if controls is not None:
        _add_verdicts(benchmark, conditions, scored, controls, seed)
    entries = {**scored, **{label: {"error": refused[label]} for label in refused}}
    chosen = {label: controls is None or label in controls for label in entries}
    return {
        "plain": alone,
        "methods": {label: entry for label, entry in entries.items() if chosen[label]},
        "controls": {label: entry for label, entry in entries.items() if not chosen[label]},
    }


def _add_verdicts(
    benchmark: Benchmark,
    conditions: Mapping[str, AnswerSet],
    scored: Mapping[str, dict[str, Any]],
    controls: Mapping[str, Sequence[str]],
    seed: int,
) -> None:
    """Add "against_controls" to the methods that ran."""
    lower = {scorer.name: scorer.lower_is_better for scorer in scorers_of(benchmark)}

    @cache
    def score(first: str, second: str) -> Mapping[str, Any]:
        if first == PLAIN:
            figures: Mapping[str, Any] = scored[second]["figures"]
            return figures
        return _figures(benchmark, conditions[first], conditions[second], seed)[0]

    compared: Score = score
    for label, names in controls.items():
        if label in scored:
            ran = {
                name: scored[name]
                for name in names
                if name in scored and not _nothing_left(benchmark, conditions[name], conditions[label])
            }
            verdicts = against_controls(label, scored[label], ran, lower, compared, PLAIN)
            scored[label]["against_controls"] = verdicts
    add_verdicts([entry["against_controls"] for entry in scored.values() if "against_controls" in entry])


def _score_alone(benchmark: Benchmark, plain: AnswerSet, seed: int) -> dict[str, Any]:
    scored, indices = drop_failed_clusters(benchmark, set(plain.errors))
    answers = [plain.answers[i] for i in indices]
    return {
        **_summary(plain, len(benchmark.items) - len(indices)),
        "text": confounds.measure(scored.items, answers),
        "length": _length(scored, answers, seed),
        "cut_in_thinking": confounds.count_cut(answers),
        "figures": scored.score({"plain": answers}, seed=seed),
    }


def _score_against(benchmark: Benchmark, plain: AnswerSet, edited: AnswerSet, seed: int) -> dict[str, Any]:
    figures, scored, answers = _figures(benchmark, plain, edited, seed)
    texts = {label: confounds.measure(scored.items, texts) for label, texts in answers.items()}
    for scores in _with_difference(figures):
        _add_detectable(scores["difference"], scores.get("statistics", {}))
    return {
        **_summary(edited, len(benchmark.items) - len(scored.items)),
        "text": texts["edited"],
        "length": _length(scored, answers["edited"], seed),
        "cut_in_thinking": confounds.count_cut(answers["edited"]),
        "answers_changed": sum(map(str.__ne__, answers["plain"], answers["edited"])),
        "figures": figures,
        "flags": confounds.flags(texts["plain"], texts["edited"], plain.cost, edited.cost),
    }


def _figures(
    benchmark: Benchmark, plain: AnswerSet, edited: AnswerSet, seed: int
) -> tuple[dict[str, Any], Benchmark, dict[str, list[str]]]:
    """The figures of two conditions, the questions that both have answers to, and these answers."""
    scored, indices = drop_failed_clusters(benchmark, {*plain.errors, *edited.errors})
    answers = {
        "plain": [plain.answers[i] for i in indices],
        "edited": [edited.answers[i] for i in indices],
    }
    return scored.score(answers, seed=seed), scored, answers


def _nothing_left(benchmark: Benchmark, first: AnswerSet, second: AnswerSet) -> str | None:
    """Why two conditions cannot be compared: they have answers to no question in common."""
    try:
        drop_failed_clusters(benchmark, {*first.errors, *second.errors})
    except InputError as error:
        return str(error)
    return None


def _length(scored: Benchmark, answers: Sequence[str], seed: int) -> dict[str, float]:
    return confounds.length(answers, [cluster_of(scored, item) for item in scored.items], seed)


def _summary(answers: AnswerSet, left_out: int) -> dict[str, Any]:
    return {
        "asked": answers.num_requests,
        "failed": len(answers.errors),
        "left_out": left_out,
        "cost": {**answers.cost.to_dict(), "forwards_per_token": answers.cost.forwards_per_token},
        "sharing": answers.sharing,
    }


def non_share_figures(benchmark: Benchmark) -> dict[str, list[str]]:
    """{scorer: its metrics that are not fractions between 0 and 1}."""
    return {
        scorer.name: [metric for metric in scorer.metrics if metric not in scorer.fractions]
        for scorer in scorers_of(benchmark)
        if scorer.fractions is not None
    }


def scorers_of(benchmark: Benchmark) -> Sequence[Any]:
    """The scorers of a benchmark; none where it scores in its own way."""
    return benchmark.scorers() if hasattr(benchmark, "scorers") else ()


def drop_failed_clusters(benchmark: Benchmark, failed: set[int]) -> tuple[Benchmark, list[int]]:
    """The benchmark without every cluster in which an item failed, and the indices of the remaining items.

    Items that a scorer counts together (both questions about an image) stay or go together.

    Raises:
        InputError: nothing is left.
    """
    clusters = [cluster_of(benchmark, item) for item in benchmark.items]
    dropped = {clusters[index] for index in failed}
    indices = [index for index, cluster in enumerate(clusters) if cluster not in dropped]
    if not indices:
        raise InputError(
            f"{benchmark.name}: no question is left to score, every one failed or stands with one"
        )
    if len(indices) == len(clusters):
        return benchmark, indices
    return with_items(benchmark, (benchmark.items[index] for index in indices)), indices


def _with_difference(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        scores
        for split in figures.values()
        for scores in split.values()
        if isinstance(scores, dict) and "difference" in scores
    ]


def _add_detectable(difference: dict[str, Any], statistics: Mapping[str, Any]) -> None:
    """Add to each figure the smallest difference that would be found.

    A share of right answers is tested exactly, which needs at least `FEWEST_CHANGES` changed answers.
    """
    for name, figure in difference.items():
        if isinstance(figure, dict) and {"low", "high"} <= figure.keys():
            least = estimators.detectable(figure["low"], figure["high"])
            if name == statistics.get("share"):
                least = max(least, estimators.FEWEST_CHANGES / statistics["items"])  # nan stays nan
            figure["detectable"] = least


def _add_holm_p(figures: Sequence[Mapping[str, Any]]) -> None:
    """Add "holm_p" to each tested difference, corrected over all methods for each split and scorer."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for method in figures:
        for split, scores in method.items():
            for scorer, compared in scores.items():
                if isinstance(compared, dict) and "difference" in compared:
                    families.setdefault((split, scorer), []).append(compared["difference"])
    for differences in families.values():
        tested = [(each, p) for each in differences if (p := p_value(each)) is not None]
        corrected = estimators.holm([p for _, p in tested])
        for (difference, _), p in zip(tested, corrected, strict=True):
            difference["holm_p"] = p
