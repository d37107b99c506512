"""Scores of answers: what a scorer is, its figures with intervals, and two conditions compared.

A scorer turns each answer into a row of counts. Figures are functions of summed counts (a ratio, a mean), so
that one pass over the answers serves the point estimate and every bootstrap replicate. What is counted for a
group of items (both questions of an image right) stands in the row of the group's first item; a bootstrap
draws clusters that contain such groups whole.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import statistics

RESAMPLES = 2000


class Scorer(ABC):
    """A named rule, as pure functions of answers (or of a judge's verdicts on them) and references.

    Attributes:
        name: how results call it. version: which script at which commit it reproduces.
        figures: what it measures; the first is compared by a test where answers are not right or wrong.
        proportion: the figure, if any, that is the share of right answers among all.
        shares: the figures that lie between 0 and 1, which tables show in percent; None: all.
    """

    name: str
    version: str
    figures: tuple[str, ...]
    proportion: ClassVar[str | None] = None
    shares: ClassVar[tuple[str, ...] | None] = None

    @abstractmethod
    def tally(self, references: Sequence[Any], answers: Sequence[Any]) -> np.ndarray:
        """Counts, one row per answer: [n, ...]."""

    @abstractmethod
    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The figures, each [...], of summed counts [..., *shape of a row]; nan where one is undefined."""

    def right(self, counts: np.ndarray) -> np.ndarray | None:
        """Which answers are right: bool [n] from counts [n, ...]; None where there is no right and wrong."""
        return None

    def details(self, sums: np.ndarray) -> dict[str, Any]:
        """Summed counts under names, for the results file; empty where the figures say all."""
        return {}

    def score(
        self, references: Sequence[Any], answers: Sequence[Any], *, strict: bool = True
    ) -> dict[str, float]:
        """The figures without intervals.

        Args:
            strict: False pairs answers and references by position and drops the surplus in silence, as many
                official scripts do.

        Raises:
            InputError: no answers, or (strict) not as many as references.
        """
        if (strict and len(references) != len(answers)) or not references or not answers:
            raise InputError(
                f"{len(answers)} answers for {len(references)} references; expected one each, at least one"
            )
        count = min(len(references), len(answers))
        sums = self.tally(references[:count], answers[:count]).sum(0)
        return {name: float(value) for name, value in self.ratios(sums).items()}


def ratio(above: Any, below: Any, undefined: float = math.nan) -> np.ndarray:
    """Elementwise above / below, `undefined` where `below` is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.divide(above, below, out=np.full(below.shape, undefined), where=below != 0)


def compare(
    scorer: Scorer,
    references: Sequence[Any],
    answers: Mapping[str, Sequence[Any]],
    *,
    clusters: Sequence[Hashable],
    seed: int,
) -> dict[str, Any]:
    """Figures of each condition with 95 % intervals; for "plain" and "edited" also their difference.

    A share of right answers has a Wilson interval and its difference Newcombe's paired one; all else a
    percentile bootstrap over clusters, with the same draws for both conditions; of a single cluster there is
    nothing to draw (nan). A difference is edited - plain. Right and wrong answers are compared by McNemar's
    test, other figures by exchanging the conditions within clusters (`permutation_p`, of the first figure).

    Args:
        clusters: per item what it stands or falls with, mostly its image.
    """
    counts = {name: scorer.tally(references, given) for name, given in answers.items()}
    grouped = {name: _per_cluster(each, clusters) for name, each in counts.items()}
    point = {name: scorer.ratios(each.sum(0)) for name, each in counts.items()}
    drawn = {
        name: scorer.ratios(statistics.bootstrap_sums(each, resamples=RESAMPLES, seed=seed))
        for name, each in grouped.items()
    }
    out: dict[str, Any] = {}
    for name, each in counts.items():
        right = scorer.right(each)
        exact = None if right is None else statistics.wilson(int(right.sum()), len(right))
        out[name] = _estimates(scorer, point[name], drawn[name], exact)
        if details := scorer.details(each.sum(0)):
            out[name]["counts"] = details
    if {"plain", "edited"} <= counts.keys():
        out["difference"] = _difference(scorer, counts, grouped, point, drawn, seed)
    return out


def _difference(
    scorer: Scorer,
    counts: Mapping[str, np.ndarray],
    grouped: Mapping[str, np.ndarray],
    point: Mapping[str, Mapping[str, np.ndarray]],
    drawn: Mapping[str, Mapping[str, np.ndarray]],
    seed: int,
) -> dict[str, Any]:
    values, replicates = (
        {figure: each["edited"][figure] - each["plain"][figure] for figure in scorer.figures}
        for each in (point, drawn)
    )
    plain, edited = scorer.right(counts["plain"]), scorer.right(counts["edited"])
    if plain is None or edited is None:
        return {
            **_estimates(scorer, values, replicates, None),
            "permutation_p": permutation(scorer, grouped["plain"], grouped["edited"], seed=seed),
        }
    only_plain, only_edited = int((plain & ~edited).sum()), int((~plain & edited).sum())
    both, neither = int((plain & edited).sum()), int((~plain & ~edited).sum())
    exact = statistics.paired_difference(both, only_plain, only_edited, neither)
    return {
        **_estimates(scorer, values, replicates, exact),
        "only_plain_correct": only_plain,
        "only_edited_correct": only_edited,
        "mcnemar_p": statistics.mcnemar(only_plain, only_edited),
    }


def permutation(scorer: Scorer, plain: np.ndarray, edited: np.ndarray, *, seed: int) -> float:
    """Two-sided p-value that the first figure does not depend on the condition.

    Under the null hypothesis a cluster's two results may change places: each of the permutations does so with
    a random half of the clusters. Unpermuted counts as one of them, so that p is never 0.

    Args:
        plain, edited: counts per cluster [clusters, ...].
    """
    figure = scorer.figures[0]
    generator = np.random.default_rng(seed)
    change = (edited - plain).reshape(len(plain), -1).astype(np.float64)
    swapped = generator.random((RESAMPLES, len(plain))) < 0.5
    moved = (swapped @ change).reshape(RESAMPLES, *plain.shape[1:])

    def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return scorer.ratios(second)[figure] - scorer.ratios(first)[figure]

    observed = abs(difference(plain.sum(0), edited.sum(0)))
    permuted = np.abs(difference(plain.sum(0) + moved, edited.sum(0) - moved))
    if np.isnan(observed):
        return math.nan
    return float((1 + (permuted >= observed - 1e-12).sum()) / (1 + RESAMPLES))


def _per_cluster(counts: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """Counts per item [n, ...] summed over the items of each cluster: [clusters, ...]."""
    number: dict[Hashable, int] = {}
    places = [number.setdefault(cluster, len(number)) for cluster in clusters]
    sums = np.zeros((len(number), *counts.shape[1:]), dtype=counts.dtype)
    np.add.at(sums, places, counts)
    return sums


def _estimates(
    scorer: Scorer,
    point: Mapping[str, np.ndarray],
    drawn: Mapping[str, np.ndarray],
    exact: tuple[float, float] | None,
) -> dict[str, Any]:
    """{figure: {value, low, high}}; `exact` is the interval of the share of right answers."""
    out = {}
    for figure in scorer.figures:
        value = float(point[figure])
        interval = (math.nan, math.nan)
        if figure == scorer.proportion and exact is not None:
            interval = exact
        elif not math.isnan(value):
            interval = statistics.percentile_interval(drawn[figure])
        out[figure] = {"value": value, "low": interval[0], "high": interval[1]}
    return out
