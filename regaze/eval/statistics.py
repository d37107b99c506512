"""Intervals (95 %) and paired tests for counts: what a figure of a benchmark can and cannot tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
#: chance of finding a difference of the size that is called detectable
POWER = 0.80


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


def bootstrap_sums(counts: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Sums over clusters drawn with replacement: counts [clusters, ...] -> [resamples, ...]; nan if only one.

    Questions about one image stand or fall together, so the image is what is drawn, never the
    single question.
    """
    clusters = len(counts)
    if clusters < 2:
        return np.full((resamples, *counts.shape[1:]), np.nan)
    generator = np.random.default_rng(seed)
    # How often each cluster is drawn, [resamples, clusters]: all replicates are one product of matrices.
    weights = generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    sums = weights.astype(np.float64) @ counts.reshape(clusters, -1).astype(np.float64)
    return sums.reshape(resamples, *counts.shape[1:])


def percentile_interval(replicates: np.ndarray) -> tuple[float, float]:
    """Percentile interval of replicates [resamples]; undefined ones (nan) are left out, nan if all are."""
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return math.nan, math.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)
