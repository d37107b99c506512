"""Scorers of answers, and the comparison of two conditions by them.

A scorer turns each answer into a row of counts. Its metrics are functions of summed counts (a ratio, a mean),
so that one pass over the answers serves the point estimate and every bootstrap replicate. A count for a group
of items (both questions of an image are correct) stands in the row of the group's first item; the bootstrap
draws clusters that contain such groups whole.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval.stats import estimators

BOOTSTRAP_RESAMPLES = 2000
PERMUTATIONS = 9999
#: Metrics that describe answers: neither more nor less of them is better.
DESCRIPTIVE = ("yes_ratio", "length", "words")
#: Names of intervals and tests in the results.
BOOTSTRAP, WILSON = "bootstrap by cluster", "Wilson (differences: Newcombe)"
MCNEMAR, EXACT_PERMUTATION = "McNemar, exact", "permutation by cluster, exact"
RANDOM_PERMUTATION = "permutation by cluster, random"


class Scorer(ABC):
    """A named scoring rule: pure functions of references and of answers (or of a judge's verdicts on them).

    Attributes:
        name: Name in the results.
        version: Script and commit that the rule reproduces.
        metrics: Names of the metrics. The first is tested where answers are not correct or incorrect.
        accuracy_metric: The metric, if any, that is the share of correct answers among all.
        fractions: The metrics between 0 and 1, which tables show in percent; None for all.
        lower_is_better: The metrics of which less is better. Of `DESCRIPTIVE` ones neither is.
    """

    name: str
    version: str
    metrics: tuple[str, ...]
    accuracy_metric: ClassVar[str | None] = None
    fractions: ClassVar[tuple[str, ...] | None] = None
    lower_is_better: ClassVar[tuple[str, ...]] = ("unreadable",)

    @abstractmethod
    def count(self, references: Sequence[Any], answers: Sequence[Any]) -> np.ndarray:
        """Counts, one row per answer: [n, ...]."""

    @abstractmethod
    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics, each [...], of summed counts [..., *shape of a row]; nan where undefined."""

    def correct(self, counts: np.ndarray) -> np.ndarray | None:
        """Which answers are correct: bool [n] from counts [n, ...]; None if answers are graded otherwise."""
        return None

    def readings(self, references: Sequence[Any], answers: Sequence[Any]) -> list[str] | None:
        """Each answer as "yes", "no" or "other"; None of a scorer that does not read yes/no answers."""
        return None

    def details(self, sums: np.ndarray) -> dict[str, Any]:
        """Named counts for the results file; empty where the metrics are all there is."""
        return {}

    def score(
        self, references: Sequence[Any], answers: Sequence[Any], *, strict: bool = True
    ) -> dict[str, float]:
        """The metrics without intervals.

        Args:
            strict: False pairs answers and references by position and ignores the surplus, as many official
                scripts do.

        Raises:
            InputError: There are no answers, or (strict) their number differs from that of the references.
        """
        if (strict and len(references) != len(answers)) or not references or not answers:
            raise InputError(
                f"{len(answers)} answers for {len(references)} references; expected one each, at least one"
            )
        n = min(len(references), len(answers))
        sums = self.count(references[:n], answers[:n]).sum(0)
        return {name: float(value) for name, value in self.compute(sums).items()}


def ratio(numerator: Any, denominator: Any, undefined: float = math.nan) -> np.ndarray:
    """Elementwise numerator / denominator, `undefined` where the denominator is 0."""
    above, below = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.divide(above, below, out=np.full(below.shape, undefined), where=below != 0)


def compare(
    scorer: Scorer,
    references: Sequence[Any],
    answers: Mapping[str, Sequence[Any]],
    *,
    clusters: Sequence[Hashable],
    seed: int,
) -> dict[str, Any]:
    """Metrics of each condition with 95 % intervals; for "plain" and "edited" also the difference and a test.

    * Clusters of several items: percentile bootstrap over clusters, with the same draws for both conditions.
      Correct answers are compared by exchanging the conditions within clusters (`permutation_p`, exact).
    * Independent items: the share of correct answers has a Wilson interval, its difference Newcombe's
      interval, and the test is McNemar's (`mcnemar_p`); other metrics have bootstrap intervals.
    * Scorers without correct and incorrect answers: a random permutation test of the first metric.

    "statistics" says which of these were used. A difference is edited - plain.

    Args:
        clusters: The bootstrap unit of each item, mostly its image.
    """
    cluster_ids = _number(clusters)
    counts = {condition: scorer.count(references, given) for condition, given in answers.items()}
    grouped = {condition: _sum_per_cluster(each, cluster_ids) for condition, each in counts.items()}
    points = {condition: scorer.compute(each.sum(0)) for condition, each in counts.items()}
    draws = {
        condition: scorer.compute(estimators.bootstrap_sums(each, resamples=BOOTSTRAP_RESAMPLES, seed=seed))
        for condition, each in grouped.items()
    }
    independent = max(cluster_ids) + 1 == len(clusters)
    out: dict[str, Any] = {}
    for condition, each in counts.items():
        correct = scorer.correct(each)
        exact = None
        if independent and correct is not None:
            exact = estimators.wilson(int(correct.sum()), len(correct))
        out[condition] = _estimates(scorer, points[condition], draws[condition], exact)
        if details := scorer.details(each.sum(0)):
            out[condition]["counts"] = details
    if {"plain", "edited"} <= counts.keys():
        point, replicates = (
            {metric: each["edited"][metric] - each["plain"][metric] for metric in scorer.metrics}
            for each in (points, draws)
        )
        exact, test = _paired_test(scorer, counts, grouped, cluster_ids, independent, seed)
        out["difference"] = {**_estimates(scorer, point, replicates, exact), **test}
    graded = scorer.correct(next(iter(counts.values()))) is not None
    out["statistics"] = _describe_statistics(scorer, len(clusters), len(set(cluster_ids)), graded)
    return out


def _paired_test(
    scorer: Scorer,
    counts: Mapping[str, np.ndarray],
    grouped: Mapping[str, np.ndarray],
    cluster_ids: Sequence[int],
    independent: bool,
    seed: int,
) -> tuple[tuple[float, float] | None, dict[str, Any]]:
    """The exact interval of the difference, if there is one, and the results of the paired test."""
    plain, edited = scorer.correct(counts["plain"]), scorer.correct(counts["edited"])
    if plain is None or edited is None:
        p = estimators.permutation(
            lambda sums: scorer.compute(sums)[scorer.metrics[0]],
            grouped["plain"],
            grouped["edited"],
            resamples=PERMUTATIONS,
            seed=seed,
        )
        return None, {"permutation_p": p}
    only_plain, only_edited = int((plain & ~edited).sum()), int((~plain & edited).sum())
    discordant = {"only_plain_correct": only_plain, "only_edited_correct": only_edited}
    if independent:
        both, neither = int((plain & edited).sum()), int((~plain & ~edited).sum())
        exact = estimators.paired_difference(both, only_plain, only_edited, neither)
        return exact, {**discordant, "mcnemar_p": estimators.mcnemar(only_plain, only_edited)}
    changes = edited.astype(np.int64) - plain
    per_cluster = _sum_per_cluster(changes, cluster_ids)
    return None, {
        **discordant,
        "permutation_p": estimators.sign_flip(per_cluster.tolist()),
        "design_effect": estimators.design_effect(changes, cluster_ids),
    }


def _describe_statistics(scorer: Scorer, items: int, clusters: int, graded: bool) -> dict[str, Any]:
    """Names of the intervals and the test; "share" is the metric that is the share of correct answers."""
    independent, intervals = items == clusters, BOOTSTRAP
    if independent and graded and scorer.accuracy_metric is not None:
        intervals = f"{WILSON} of {scorer.accuracy_metric}, else {BOOTSTRAP}"
    test = RANDOM_PERMUTATION if not graded else MCNEMAR if independent else EXACT_PERMUTATION
    share = scorer.accuracy_metric if graded else None
    return {"items": items, "clusters": clusters, "intervals": intervals, "test": test, "share": share}


def _number(clusters: Sequence[Hashable]) -> list[int]:
    """Clusters numbered from 0 in the order of their first items."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]


def _sum_per_cluster(counts: np.ndarray, cluster_ids: Sequence[int]) -> np.ndarray:
    """Counts per item [n, ...] summed over the items of each cluster: [clusters, ...]."""
    sums = np.zeros((max(cluster_ids) + 1, *counts.shape[1:]), dtype=counts.dtype)
    np.add.at(sums, cluster_ids, counts)
    return sums


def _estimates(
    scorer: Scorer,
    point: Mapping[str, np.ndarray],
    draws: Mapping[str, np.ndarray],
    exact: tuple[float, float] | None,
) -> dict[str, Any]:
    """{metric: {value, low, high}}; `exact` is the interval of the share of correct answers."""
    out = {}
    for metric in scorer.metrics:
        value = float(point[metric])
        interval = (math.nan, math.nan)
        if metric == scorer.accuracy_metric and exact is not None:
            interval = exact
        elif not math.isnan(value):
            interval = estimators.percentile_interval(draws[metric])
        out[metric] = {"value": value, "low": interval[0], "high": interval[1]}
    return out
