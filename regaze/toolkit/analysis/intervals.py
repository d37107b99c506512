"""Means over samples with 95 % bootstrap intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats

from regaze.errors import InputError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over samples.

    Attributes:
        value: the mean. low, high: its 95 % interval; both nan for a single sample.
        samples: number of samples with a value. undefined: number without one (nan), which are left out.
    """

    value: float
    low: float
    high: float
    samples: int
    undefined: int = 0

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def rounded(self, digits: int = 4) -> dict[str, Any]:
        """A dict for JSON, with rounded floats."""
        return {k: round(v, digits) if isinstance(v, float) else v for k, v in asdict(self).items()}


def estimate(values: ArrayLike | torch.Tensor, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """The mean of one number per sample, with a percentile bootstrap interval (scipy.stats.bootstrap).

    Samples are drawn independently: average everything that belongs to one image or recording first. For the
    difference of two conditions pass the differences of the pairs.

    Args:
        values: [samples]; nan where a sample has no value.

    Raises:
        InputError: not one number per sample, or all of them undefined.
    """
    numbers = np.asarray(torch.as_tensor(values).detach().cpu(), dtype=np.float64)
    if numbers.ndim != 1:
        raise InputError(f"expected one number per sample, [samples], got {list(numbers.shape)}")
    defined = numbers[~np.isnan(numbers)]
    if not len(defined):
        raise InputError(f"none of {len(numbers)} samples has a value")
    mean, undefined = float(defined.mean()), len(numbers) - len(defined)
    if len(defined) == 1:
        return Estimate(mean, float("nan"), float("nan"), 1, undefined)
    interval = stats.bootstrap(
        (defined,),
        np.mean,
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=seed,
        batch=200,
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(defined), undefined)
