"""Intervals (95 %) and paired tests for counts: what a figure of a benchmark can and cannot tell.

Wilson, Newcombe and McNemar take questions as independent; the bootstrap and the permutation tests take
clusters of questions, mostly those about one image, as what may fall one way or the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
#: chance of finding a difference of the size that is called detectable
POWER = 0.80
#: changes in one direction with which an exact paired test can reach 5 %: 2 / 2^6, but not 2 / 2^5
FEWEST_CHANGES = 6
#: numbers in memory at once while clusters are drawn
_DRAWN_AT_ONCE = 4_000_000


def wilson(successes: int, total: int) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927). Raises ValueError when `total` is 0."""
    interval = stats.binomtest(successes, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p-value from the pairs on which just one of two conditions is correct.

    Under the null hypothesis a discordant pair falls to either side with probability 1/2; without any, p
    is 1.
    """
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979), in the order given.

    The k-th smallest of n is multiplied by n - k + 1, and none may fall below a smaller one's.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.minimum(np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors), 1.0)
    out = np.empty(len(p_values))
    out[order] = corrected
    return out.tolist()


def paired_difference(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """Interval of (second - first) for two proportions measured on the same items.

    Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, 2635-2650, method 10): Wilson intervals
    of the two proportions joined through their correlation phi, with a continuity correction when phi is
    positive. Unlike the Wald interval it keeps a width when no pair is discordant.
    """
    total = both + only_first + only_second + neither
    first, second = (both + only_first) / total, (both + only_second) / total
    first_low, first_high = wilson(both + only_first, total)
    second_low, second_high = wilson(both + only_second, total)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    covariance = float(both * neither - only_first * only_second)
    if covariance > 0:
        covariance = max(covariance - total / 2, 0.0)
    phi = covariance / math.sqrt(margins) if margins else 0.0

    def reach(a: float, b: float) -> float:
        # Non-negative in exact arithmetic (|phi| <= 1); rounding can take it a hair below.
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    difference = second - first
    low = difference - reach(second - second_low, first_high - first)
    high = difference + reach(second_high - second, first - first_low)
    return low, high


def detectable(low: float, high: float) -> float:
    """The smallest true difference that such a comparison finds with a power of 80 %, at the 5 % level.

    (z_0.975 + z_0.8) standard errors, the standard error read off the 95 % interval of the difference. nan
    where the interval is.
    """
    two_sided = stats.norm.ppf((1 + CONFIDENCE) / 2)
    return float((high - low) / (2 * two_sided) * (two_sided + stats.norm.ppf(POWER)))


def sign_flip(changes: Sequence[int]) -> float:
    """Two-sided exact p-value of a sum of whole numbers whose signs are arbitrary.

    The paired permutation test by cluster: under the null hypothesis the two conditions may change places
    within any cluster, which turns the sign of its change. All 2^n arrangements count, by adding up the
    distribution cluster after cluster. Clusters of one question make it McNemar's exact test.

    Args:
        changes: per cluster the right answers gained, minus those lost.
    """
    sizes = np.abs(np.asarray(changes, dtype=np.int64))
    sizes = sizes[sizes > 0]
    reach = int(sizes.sum())
    # chance[i] is that of the sum i - reach
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0
    for size in sizes:
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2  # what is rolled over an end is 0
    observed = abs(int(np.sum(changes)))
    return float(min(1.0, chance[np.abs(np.arange(-reach, reach + 1)) >= observed].sum()))


def design_effect(changes: np.ndarray, clusters: Sequence[int]) -> float:
    """How many times wider, squared, the mean of `changes` lies than if its questions were independent.

    The variance between clusters (linearised, for clusters of different size) over that between questions,
    Kish's deff. nan where nothing varies or there is a single cluster.

    Args:
        changes: per question [n]. clusters: the number of each question's cluster [n].
    """
    away = np.asarray(changes, dtype=np.float64) - np.mean(changes)
    sums = np.bincount(clusters, weights=away)
    total, groups = len(away), len(sums)
    if groups < 2 or not away.any():
        return math.nan
    between, independent = groups / (groups - 1) * sums @ sums, total / (total - 1) * away @ away
    return float(between / independent)


def bootstrap_sums(counts: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Sums over clusters drawn with replacement: counts [clusters, ...] -> [resamples, ...]; nan if only one.

    Questions about one image stand or fall together, so the image is what is drawn, never the
    single question.
    """
    clusters = len(counts)
    if clusters < 2:
        return np.full((resamples, *counts.shape[1:]), np.nan)
    rows = counts.reshape(clusters, -1).astype(np.float64)

    def sums(index: np.ndarray, axis: int) -> np.ndarray:
        return np.moveaxis(rows[index].sum(index.ndim - 1), -1, 0)

    drawn = stats.bootstrap(
        (np.arange(clusters),),
        sums,
        n_resamples=resamples,
        batch=max(1, _DRAWN_AT_ONCE // rows.size),
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(seed),
    ).bootstrap_distribution
    return drawn.T.reshape(resamples, *counts.shape[1:])


def permutation(
    figure: Callable[[np.ndarray], np.ndarray],
    plain: np.ndarray,
    edited: np.ndarray,
    *,
    resamples: int,
    seed: int,
) -> float:
    """Two-sided p-value that a figure does not depend on the condition; nan where it is undefined.

    Under the null hypothesis a cluster's two results may change places. All arrangements are tried where
    these are no more than `resamples`, else as many random ones; the given one counts as one of them, so that
    p is never 0.

    Args:
        figure: of summed counts [..., *shape of a row], elementwise: [...].
        plain, edited: counts per cluster [clusters, ...].
    """
    clusters, shape = len(plain), plain.shape[1:]
    change = (edited - plain).reshape(clusters, -1).astype(np.float64)
    first, second = plain.sum(0), edited.sum(0)
    if np.isnan(figure(first)) or np.isnan(figure(second)):
        return math.nan
    if clusters < 2:  # exchanged as a whole: as large a difference, in the other direction
        return 1.0

    def difference(at_first: np.ndarray, at_second: np.ndarray, axis: int) -> np.ndarray:
        # The samples are numbers of clusters, those of the edited condition behind all plain ones.
        swapped = at_first >= clusters
        moved = (swapped @ change).reshape(*swapped.shape[:-1], *shape)
        return figure(second - moved) - figure(first + moved)

    places = np.arange(clusters)
    return float(
        stats.permutation_test(
            (places, places + clusters),
            difference,
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _DRAWN_AT_ONCE // clusters),
            random_state=np.random.default_rng(seed),
        ).pvalue
    )


def percentile_interval(replicates: np.ndarray) -> tuple[float, float]:
    """Percentile interval of replicates [resamples]; undefined ones (nan) are left out.

    nan if all are, and where all are the same: draws of what never varied cannot say how much it might.
    """
    defined = replicates[~np.isnan(replicates)]
    if not len(defined) or np.ptp(defined) == 0:
        return math.nan, math.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)
