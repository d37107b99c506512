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
from regaze.eval.stats import estimators

#: of the bootstrap, and random exchanges of a permutation test
RESAMPLES, EXCHANGES = 2000, 9999
#: what `compare` calls its intervals and tests
BOOTSTRAP, WILSON = "bootstrap by cluster", "Wilson (differences: Newcombe)"
MCNEMAR, EXACT_PERMUTATION = "McNemar, exact", "permutation by cluster, exact"
RANDOM_PERMUTATION = "permutation by cluster, random"


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

    Where clusters hold several items, every interval is a percentile bootstrap over clusters, with the same
    draws for both conditions, and right and wrong answers are compared by exchanging the conditions within
    clusters (`permutation_p`, exact). Where every item stands by itself, a share of right answers has a
    Wilson interval, its difference Newcombe's paired one, and the test is McNemar's (`mcnemar_p`). Scorers
    without right and wrong are tested by the first of their figures, by random exchanges. "statistics" says
    which of these it was. A difference is edited - plain.

    Args:
        clusters: per item what it stands or falls with, mostly its image.
    """
    numbered = _numbered(clusters)
    counts = {name: scorer.tally(references, given) for name, given in answers.items()}
    grouped = {name: _per_cluster(each, numbered) for name, each in counts.items()}
    point = {name: scorer.ratios(each.sum(0)) for name, each in counts.items()}
    drawn = {
        name: scorer.ratios(estimators.bootstrap_sums(each, resamples=RESAMPLES, seed=seed))
        for name, each in grouped.items()
    }
    alone = len(next(iter(grouped.values()))) == len(clusters)
    out: dict[str, Any] = {}
    for name, each in counts.items():
        right = scorer.right(each)
        exact = estimators.wilson(int(right.sum()), len(right)) if alone and right is not None else None
        out[name] = _estimates(scorer, point[name], drawn[name], exact)
        if details := scorer.details(each.sum(0)):
            out[name]["counts"] = details
    if {"plain", "edited"} <= counts.keys():
        values, replicates = (
            {figure: each["edited"][figure] - each["plain"][figure] for figure in scorer.figures}
            for each in (point, drawn)
        )
        exact, tested = _test(scorer, counts, grouped, numbered, alone, seed)
        out["difference"] = {**_estimates(scorer, values, replicates, exact), **tested}
    judged = scorer.right(next(iter(counts.values()))) is not None
    out["statistics"] = _used(scorer, len(clusters), len(set(numbered)), judged)
    return out


def _test(
    scorer: Scorer,
    counts: Mapping[str, np.ndarray],
    grouped: Mapping[str, np.ndarray],
    clusters: Sequence[int],
    alone: bool,
    seed: int,
) -> tuple[tuple[float, float] | None, dict[str, Any]]:
    """The exact interval of the difference, if there is one, and the paired test under its name."""
    plain, edited = scorer.right(counts["plain"]), scorer.right(counts["edited"])
    if plain is None or edited is None:
        p = estimators.permutation(
            lambda sums: scorer.ratios(sums)[scorer.figures[0]],
            grouped["plain"],
            grouped["edited"],
            resamples=EXCHANGES,
            seed=seed,
        )
        return None, {"permutation_p": p}
    only_plain, only_edited = int((plain & ~edited).sum()), int((~plain & edited).sum())
    told = {"only_plain_correct": only_plain, "only_edited_correct": only_edited}
    if alone:
        both, neither = int((plain & edited).sum()), int((~plain & ~edited).sum())
        exact = estimators.paired_difference(both, only_plain, only_edited, neither)
        return exact, {**told, "mcnemar_p": estimators.mcnemar(only_plain, only_edited)}
    changes = edited.astype(np.int64) - plain
    per_cluster = _per_cluster(changes, clusters)
    return None, {
        **told,
        "permutation_p": estimators.sign_flip(per_cluster.tolist()),
        "design_effect": estimators.design_effect(changes, clusters),
    }


def _used(scorer: Scorer, items: int, clusters: int, judged: bool) -> dict[str, Any]:
    """Which intervals and which test these are, for results and reports; "share" is that of right answers."""
    alone, intervals = items == clusters, BOOTSTRAP
    if alone and judged and scorer.proportion is not None:
        intervals = f"{WILSON} of {scorer.proportion}, else {BOOTSTRAP}"
    test = RANDOM_PERMUTATION if not judged else MCNEMAR if alone else EXACT_PERMUTATION
    share = scorer.proportion if judged else None
    return {"items": items, "clusters": clusters, "intervals": intervals, "test": test, "share": share}


def _numbered(clusters: Sequence[Hashable]) -> list[int]:
    number: dict[Hashable, int] = {}
    return [number.setdefault(cluster, len(number)) for cluster in clusters]


def _per_cluster(counts: np.ndarray, clusters: Sequence[int]) -> np.ndarray:
    """Counts per item [n, ...] summed over the items of each cluster: [clusters, ...]."""
    sums = np.zeros((max(clusters) + 1, *counts.shape[1:]), dtype=counts.dtype)
    np.add.at(sums, clusters, counts)
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
            interval = estimators.percentile_interval(drawn[figure])
        out[figure] = {"value": value, "low": interval[0], "high": interval[1]}
    return out
