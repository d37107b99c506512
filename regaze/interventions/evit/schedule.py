"""The keep rate of EViT during training."""

from __future__ import annotations

import math


def scheduled_keep_rate(
    iteration: int, per_epoch: int, keep_rate: float = 0.7, start: int = 10, epochs: int = 100
) -> float:
    """The keep rate at a training step: 1 in the first `start` epochs, then along a cosine to `keep_rate`.

    Args:
        iteration: the training step, from 0.
        per_epoch: steps per epoch.
        keep_rate: the final rate.
        start: epochs without dropping.
        epochs: length of the decrease, in epochs.
    """
    progress = min(max((iteration / per_epoch - start) / epochs, 0.0), 1.0)
    return keep_rate + (1.0 - keep_rate) * (1.0 + math.cos(math.pi * progress)) / 2
