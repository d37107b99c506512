"""From answers to what is said of methods: figures, differences to the plain model, what may feign them."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regaze.errors import InputError
from regaze.eval import estimators
from regaze.eval.benchmarks.common.base import Benchmark, Item
from regaze.eval.run.cost import Cost
from regaze.eval.run.journal import Batch
from regaze.eval.run.requests import Questions
from regaze.eval.stats import confounds

#: the label of the model without a method
PLAIN = "plain"


@dataclass(frozen=True)
class Outcome:
    """All that came of one benchmark under one condition.

    Attributes:
        answers: one per item, "" where there is none. errors: {item: reason} for those.
        asked: requests that differ. cost: of their answers. sharing: None where prefixes were shared, else
            why not.
    """

    answers: tuple[str, ...]
    errors: Mapping[int, str]
    asked: int
    cost: Cost
    sharing: str | None

    @classmethod
    def of(cls, asked: Questions, batches: Sequence[Batch]) -> Outcome:
        """What the journals hold on these questions. Of a request answered twice the first answer counts."""
        found: dict[str, str] = {}
        failures: dict[str, str] = {}
        costs, sharing = [], None
        for batch in batches:
            ours = [key for key in batch.answers if key in asked.requests and key not in found]
            found.update((key, batch.answers[key]) for key in ours)
            failures.update((key, why) for key, why in batch.errors.items() if key in asked.requests)
            if ours:
                costs.append((batch.cost, len(ours) / len(batch.answers)))
                sharing = batch.sharing
        errors = dict(asked.failed)
        for index, key in enumerate(asked.of_item):
            if key is not None and key not in found:
                errors[index] = failures.get(key, "it was not asked")
        answers = tuple("" if key is None else found.get(key, "") for key in asked.of_item)
        return cls(answers, errors, len(asked.requests), Cost.total(costs), sharing)

    @classmethod
    def given(cls, answers: Sequence[str]) -> Outcome:
        """Answers that came from elsewhere, at unknown cost."""
        return cls(tuple(answers), {}, 0, Cost(), None)

    def rows(self, benchmark: Benchmark, label: str) -> list[dict[str, Any]]:
        """The lines of answers.jsonl."""
        return [
            {
                "benchmark": benchmark.name,
                "condition": label,
                "key": item.key,
                "split": item.split,
                "image": item.image.name if item.image else None,
                "prompt": benchmark.prompt(item),
                "label": item.label,
                **({"error": self.errors[index]} if index in self.errors else {"answer": answer}),
            }
            for index, (item, answer) in enumerate(zip(benchmark.items, self.answers, strict=True))
        ]


def compare(
    benchmark: Benchmark, outcomes: Mapping[str, Outcome], refused: Mapping[str, str], seed: int
) -> dict[str, Any]:
    """{"plain": ..., "methods": {label: ...}}, each as `results.Condition`.

    Args:
        outcomes: by label; that of the plain model among them. refused: methods that could not run, and why.

    Raises:
        InputError: no question is left to score.
    """
    if PLAIN in refused:
        raise InputError(f"{benchmark.name}: the plain model cannot be asked: {refused[PLAIN]}")
    plain = outcomes[PLAIN]
    scored = {PLAIN: _alone(benchmark, plain, seed)}
    for label, outcome in outcomes.items():
        if label != PLAIN:
            scored[label] = _against(benchmark, plain, outcome, seed)
    _correct([entry["figures"] for label, entry in scored.items() if label != PLAIN])
    methods = {label: entry for label, entry in scored.items() if label != PLAIN}
    return {
        "plain": scored[PLAIN],
        "methods": {**methods, **{label: {"error": refused[label]} for label in refused}},
    }


def _alone(benchmark: Benchmark, plain: Outcome, seed: int) -> dict[str, Any]:
    rest, kept = without_clusters_of(benchmark, set(plain.errors))
    answers = [plain.answers[i] for i in kept]
    return {
        **_described(plain, len(benchmark.items) - len(kept)),
        "text": confounds.measure(rest.items, answers),
        "figures": rest.score({"plain": answers}, seed=seed),
    }


def _against(benchmark: Benchmark, plain: Outcome, edited: Outcome, seed: int) -> dict[str, Any]:
    rest, kept = without_clusters_of(benchmark, {*plain.errors, *edited.errors})
    answers = {"plain": [plain.answers[i] for i in kept], "edited": [edited.answers[i] for i in kept]}
    texts = {label: confounds.measure(rest.items, given) for label, given in answers.items()}
    figures = rest.score(answers, seed=seed)
    for compared in _compared(figures):
        _add_detectable(compared["difference"], compared.get("statistics", {}))
    return {
        **_described(edited, len(benchmark.items) - len(kept)),
        "text": texts["edited"],
        "answers_changed": sum(map(str.__ne__, answers["plain"], answers["edited"])),
        "figures": figures,
        "flags": confounds.flags(texts["plain"], texts["edited"], plain.cost, edited.cost),
    }


def _described(outcome: Outcome, left_out: int) -> dict[str, Any]:
    return {
        "asked": outcome.asked,
        "failed": len(outcome.errors),
        "left_out": left_out,
        "cost": {**outcome.cost.to_dict(), "forwards_per_token": outcome.cost.forwards_per_token},
        "sharing": outcome.sharing,
    }


def numbers(benchmark: Benchmark) -> dict[str, list[str]]:
    """{scorer: its figures that are no shares between 0 and 1}."""
    scorers: Sequence[Any] = benchmark.scorers() if hasattr(benchmark, "scorers") else ()
    return {
        scorer.name: [figure for figure in scorer.figures if figure not in scorer.shares]
        for scorer in scorers
        if scorer.shares is not None
    }


def without_clusters_of(benchmark: Benchmark, failed: set[int]) -> tuple[Benchmark, list[int]]:
    """The benchmark without every cluster in which an item failed, and the numbers of the items it keeps.

    What a scorer counts together (both questions about an image) is kept or left out together.

    Raises:
        InputError: nothing is left.
    """
    clusters = [_cluster(benchmark, item) for item in benchmark.items]
    lost = {clusters[index] for index in failed}
    kept = [index for index, cluster in enumerate(clusters) if cluster not in lost]
    if not kept:
        raise InputError(
            f"{benchmark.name}: no question is left to score, every one failed or stands with one"
        )
    if len(kept) == len(clusters):
        return benchmark, kept
    rest = copy.copy(benchmark)
    object.__setattr__(rest, "items", tuple(benchmark.items[index] for index in kept))
    return rest, kept


def _cluster(benchmark: Benchmark, item: Item) -> Hashable:
    own = getattr(benchmark, "cluster", None)
    return own(item) if own is not None else (item.image or item.key)


def _compared(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        compared
        for scores in figures.values()
        for compared in scores.values()
        if isinstance(compared, dict) and "difference" in compared
    ]


def _add_detectable(difference: dict[str, Any], used: Mapping[str, Any]) -> None:
    """Beside each figure the least difference that would be found; of right answers what can be tested."""
    for name, figure in difference.items():
        if isinstance(figure, dict) and {"low", "high"} <= figure.keys():
            least = estimators.detectable(figure["low"], figure["high"])
            if name == used.get("share"):
                least = max(least, estimators.FEWEST_CHANGES / used["items"])  # nan stays nan
            figure["detectable"] = least


def _correct(figures: Sequence[Mapping[str, Any]]) -> None:
    """Add "holm_p" beside each test's p, corrected over all methods, for each split and scorer."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in figures:
        for split, scores in each.items():
            for scorer, compared in scores.items():
                if isinstance(compared, dict) and "difference" in compared:
                    families.setdefault((split, scorer), []).append(compared["difference"])
    for differences in families.values():
        tested = [difference for difference in differences if p_value(difference) is not None]
        corrected = estimators.holm([p_value(difference) or 0.0 for difference in tested])
        for difference, p in zip(tested, corrected, strict=True):
            difference["holm_p"] = p


def p_value(difference: Mapping[str, Any]) -> float | None:
    """The p-value of a difference, of whichever test it was (`scoring.compare`)."""
    for name in ("mcnemar_p", "permutation_p"):
        p = difference.get(name)
        if p is not None and p == p:
            return float(p)
    return None
