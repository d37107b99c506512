"""95 % intervals and paired tests for counts.

Wilson, Newcombe and McNemar take questions as independent. The bootstrap and the permutation tests take
clusters of questions, mostly those about one image, as the independent units.

scipy.stats and statsmodels do the work where they have the function. Newcombe's paired interval, the exact
sign-flip test over clusters and the design effect are in neither.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from scipy import stats
from scipy.special import ndtri  # norm.ppf without its checks, which take 300 times as long

CONFIDENCE = 0.95
#: probability of finding a difference of the size that is called detectable
POWER = 0.80
#: fewest changes, all in one direction, with which an exact paired test reaches 5 %: 2 / 2^6, not 2 / 2^5
FEWEST_CHANGES = 6
#: numbers in memory at once while clusters are resampled
_MAX_NUMBERS = 4_000_000


@lru_cache(maxsize=1024)  # many figures of a benchmark are of the same counts
def wilson(successes: int, total: int) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927). Raises ValueError when `total` is 0."""
    interval = stats.binomtest(successes, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


@lru_cache(maxsize=1024)
def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p-value from the pairs on which exactly one of two conditions is correct.

    Under the null hypothesis a discordant pair favours either side with probability 1/2. Without discordant
    pairs p is 1.
    """
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979), in the order given."""
    if len(p_values) < 2:
        return list(p_values)
    from statsmodels.stats.multitest import multipletests  # takes seconds to import

    gc.freeze()  # statsmodels collects garbage at every call: a quarter of a second beside a loaded model
    try:
        corrected: list[float] = multipletests(p_values, method="holm")[1].tolist()
    finally:
        gc.unfreeze()
    return corrected


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


def detectable(low: float, high: float, level: float = 1.0 - CONFIDENCE) -> float:
    """The smallest true difference that a two-sided test at a level finds with a power of 80 %.

    (z of the level + z_0.8) standard errors, where the standard error is taken from the 95 % interval of the
    difference. nan where the interval is nan.
    """
    standard_error = (high - low) / (2 * ndtri((1 + CONFIDENCE) / 2))
    return float(standard_error * (ndtri(1 - level / 2) + ndtri(POWER)))


def fewest_changes(level: float) -> int:
    """The fewest changes, all in one direction, with which an exact paired test is below a level: 2 / 2^n."""
    return math.floor(1 - math.log2(level)) + 1


def sign_flip(changes: Sequence[int]) -> float:
    """Two-sided exact p-value of the paired permutation test by cluster.

    Under the null hypothesis the two conditions may be exchanged within any cluster, which flips the sign of
    its change. The distribution of the sum over all 2^n arrangements is built up cluster by cluster, so the
    test is exact for any n; scipy's permutation_test would draw arrangements at random. With clusters of one
    question it is McNemar's exact test.

    Args:
        changes: per cluster the number of right answers gained minus those lost.
    """
    sizes = np.abs(np.asarray(changes, dtype=np.int64))
    sizes = sizes[sizes > 0]
    reach = int(sizes.sum())
    # probability[i] is that of the sum i - reach
    probability = np.zeros(2 * reach + 1)
    probability[reach] = 1.0
    for size in sizes:  # what rolls over an end is 0
        probability = (np.roll(probability, size) + np.roll(probability, -size)) / 2
    observed = abs(int(np.sum(changes)))
    return float(min(1.0, probability[np.abs(np.arange(-reach, reach + 1)) >= observed].sum()))


def design_effect(changes: np.ndarray, clusters: Sequence[int]) -> float:
    """Kish's design effect: the variance of the mean of `changes` over that of independent questions.

    The variance between clusters is linearised, for clusters of different size. nan where nothing varies or
    there is a single cluster.

    Args:
        changes: per question [n]. clusters: the number of each question's cluster [n].
    """
    centred = np.asarray(changes, dtype=np.float64) - np.mean(changes)
    sums = np.bincount(clusters, weights=centred)
    total, groups = len(centred), len(sums)
    if groups < 2 or not centred.any():
        return math.nan
    between, independent = groups / (groups - 1) * sums @ sums, total / (total - 1) * centred @ centred
    return float(between / independent)


def bootstrap_sums(counts: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap sums over clusters: counts [clusters, ...] -> [resamples, ...]; nan for a single cluster.

    Answers to questions about one image depend on each other, so images are resampled and not questions.
    """
    clusters = len(counts)
    if clusters < 2:
        return np.full((resamples, *counts.shape[1:]), np.nan)
    every = counts.reshape(clusters, -1)
    used = every.any(0)  # parts of a benchmark that are not in this split are 0, and stay so
    rows = every[:, used].astype(np.float64)

    def sums(index: np.ndarray, axis: int) -> np.ndarray:
        return np.moveaxis(rows[index].sum(index.ndim - 1), -1, 0)

    drawn = stats.bootstrap(
        (np.arange(clusters),),
        sums,
        n_resamples=resamples,
        batch=max(1, _MAX_NUMBERS // every.size),
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(seed),
    ).bootstrap_distribution
    out = np.zeros((resamples, every.shape[1]))
    out[:, used] = drawn.T
    return out.reshape(resamples, *counts.shape[1:])


def permutation(
    figure: Callable[[np.ndarray], np.ndarray],
    plain: np.ndarray,
    edited: np.ndarray,
    *,
    resamples: int,
    seed: int,
) -> float:
    """Two-sided p-value of the hypothesis that a figure does not depend on the condition.

    Under the null hypothesis a cluster's two results may be exchanged. All arrangements are tried if there
    are at most `resamples`, else as many random ones. The observed arrangement counts as one of them, so p
    is never 0. nan where the figure is undefined.

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
        # The samples are numbers of clusters, those of the edited condition after all plain ones.
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
            batch=max(1, _MAX_NUMBERS // clusters),
            random_state=np.random.default_rng(seed),
        ).pvalue
    )


def percentile_interval(replicates: np.ndarray) -> tuple[float, float]:
    """Percentile interval of replicates [resamples], without undefined ones (nan).

    nan if all are undefined, or all the same: resampling a constant says nothing about its spread.
    """
    defined = replicates[~np.isnan(replicates)]
    if not len(defined) or np.ptp(defined) == 0:
        return math.nan, math.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)
