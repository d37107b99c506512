"""Whether a figure that was measured here is what was published: inside, outside, or cannot say.

Every figure has a 95 % interval from the run, and a published range: the lowest to the highest value that
the source and others have for it, each with its rounding. A figure is

inside
    when interval and range overlap. The difference between method and plain must besides be told from 0,
    where the published one is: an interval with both says nothing. Of the very same questions it is enough
    that the figure equals the source's, to its rounding.
outside
    when they do not, not even after the interval is widened for the number of figures of the recipe
    (Bonferroni), and nothing is known to be another way here than in the source.
cannot say
    otherwise.

Where the published images are not known, the run is about others, and the difference between two such
samples is what varies: the interval is then wider by the square root of 1 + n here / n there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from scipy import stats

Verdict = Literal["inside", "outside", "cannot say"]
INSIDE: Verdict = "inside"
OUTSIDE: Verdict = "outside"
CANNOT_SAY: Verdict = "cannot say"
LEVEL = 0.95


class Estimate(NamedTuple):
    """A figure with its 95 % interval; None where it is undefined, or does not vary."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> Range | None:
        """The interval, None where an end is missing."""
        return None if self.low is None or self.high is None else Range(self.low, self.high)


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float

    def overlaps(self, other: Range) -> bool:
        """Whether the two have a number in common."""
        return self.low <= other.high and other.low <= self.high

    def has(self, value: float) -> bool:
        """Whether a number is among them."""
        return self.low <= value <= self.high


class Judgement(NamedTuple):
    """A verdict and, where it is not "inside", the reason."""

    verdict: Verdict
    reason: str = ""


def published_range(value: float, elsewhere: Iterable[float], plus_minus: float) -> Range:
    """The published values from the lowest to the highest, each give or take `plus_minus`."""
    values = [value, *elsewhere]
    return Range(min(values) - plus_minus, max(values) + plus_minus)


def published_gain(plain: float, method: float, elsewhere: Iterable[float], plus_minus: float) -> Range:
    """The published differences between method and plain; the source's has the rounding of both values."""
    gain = Range(method - plain - 2 * plus_minus, method - plain + 2 * plus_minus)
    others = list(elsewhere)
    return Range(min([gain.low, *others]), max([gain.high, *others]))


def widened(estimate: Estimate, factor: float) -> Estimate:
    """The estimate with both arms of its interval `factor` times as long."""
    value, low, high = estimate
    if value is None or low is None or high is None:
        return estimate
    return Estimate(value, value - factor * (value - low), value + factor * (high - value))


def sampling_factor(here: int, there: int) -> float:
    """By how much longer the interval of a difference between two samples of images is than that of one."""
    return math.sqrt(1 + here / there)


def correction_factor(figures: int) -> float:
    """By how much longer a 95 % interval is after Bonferroni's correction, where figures are normal."""
    tail = (1 - LEVEL) / 2
    return float(stats.norm.isf(tail / figures) / stats.norm.isf(tail))


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of figures about the same images.

    Its interval has the mean arms of theirs: that of figures which rise and fall together, and too wide for
    others.
    """
    columns = [
        None if any(number is None for number in column) else math.fsum(column) / len(column)
        for column in zip(*estimates, strict=True)
    ]
    return Estimate(*columns)


def judge(
    ours: Estimate, theirs: Range, *, own: Range | None = None, figures: int = 1, is_gain: bool = False
) -> Judgement:
    """The verdict on one figure.

    Args:
        own: the source's own value with its rounding, where it is of the same questions.
        figures: number of figures that are judged together.
        is_gain: the figure is a difference between method and plain.
    """
    interval = ours.interval
    if ours.value is None:
        return Judgement(CANNOT_SAY, "undefined here")
    if own is not None and own.has(ours.value):
        return Judgement(INSIDE)
    if interval is None:
        return Judgement(CANNOT_SAY, "has no interval here")
    if interval.overlaps(theirs):
        if is_gain and interval.has(0.0) and not theirs.has(0.0):
            return Judgement(CANNOT_SAY, "may be the published difference, and may be none")
        return Judgement(INSIDE)
    corrected = widened(ours, correction_factor(figures)).interval
    if corrected is not None and corrected.overlaps(theirs):
        return Judgement(CANNOT_SAY, f"outside by itself, not among {figures} figures")
    return Judgement(OUTSIDE, "interval and published range do not meet")


def overall(verdicts: Sequence[Verdict], limits: Sequence[str], deviations: Sequence[str]) -> Judgement:
    """The verdict on a recipe.

    Args:
        verdicts: on its figures.
        limits: why the run is not the whole recipe, such as --limit: then nothing can be said.
        deviations: what the source does not state or is another way here: a figure outside may be due to it.
    """
    if limits:
        return Judgement(CANNOT_SAY, "; ".join(limits))
    if OUTSIDE in verdicts:
        if deviations:
            return Judgement(CANNOT_SAY, f"outside, which may be due to: {'; '.join(deviations)}")
        return Judgement(OUTSIDE, f"{verdicts.count(OUTSIDE)} of {len(verdicts)} figures are outside")
    if CANNOT_SAY in verdicts or not verdicts:
        return Judgement(CANNOT_SAY, f"of {verdicts.count(CANNOT_SAY)} of {len(verdicts)} figures")
    return Judgement(INSIDE)


def together(verdicts: Sequence[Verdict]) -> Judgement:
    """The verdict on runs of several versions of the questions, where the source does not say which."""
    if len(set(verdicts)) == 1:
        return Judgement(verdicts[0])
    return Judgement(CANNOT_SAY, "depends on the version of the questions, which the source does not state")
