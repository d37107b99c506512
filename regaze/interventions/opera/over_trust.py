"""OPERA's measure of over-trust: how strongly an answer leans on one of its earlier tokens.

Column scores are products down the columns of a triangle that grows by one row per token. They are kept as
sums of logarithms, which stay in the range of floats; nothing else of the attention is kept.

Source: OPERA (arXiv:2311.17911).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

#: ln of the factor that brings column products into the range of logits.
_LOG_UNIT = math.log(1e-7)
#: A larger penalty excludes a candidate in any case; up to it float64 still separates logits.
_MAX_LOG_PENALTY = math.log(1e6)


def grow_columns(columns: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Logarithms of the column products after one more token.

    Args:
        columns: [n, t-1], sum of ln(scale * weight) down each column.
        weights: [n, t], the new token's attention on the answer, its own key last.

    Returns:
        [n, t].
    """
    return F.pad(columns, (0, 1)) + (scale * weights.double()).log()


def over_trust_penalty(columns: Tensor, window: int | None = None) -> tuple[Tensor, Tensor]:
    """Penalty [n] of the strongest of the last `window` columns, and its number [n]; the first of equals."""
    first = 0 if window is None else max(0, columns.shape[1] - window)
    strongest, column = columns[:, first:].max(1)
    return (strongest + _LOG_UNIT).clamp_max(_MAX_LOG_PENALTY).exp(), column + first


def penalised_log_probs(
    log_probs: Tensor, penalty: Tensor, weight: float, as_released: bool = False
) -> Tensor:
    """Log-probabilities [n, c] of candidates whose logits are lowered by weight * penalty [n, c].

    The candidates keep the probability that they had together; with `as_released` they share all of it.
    """
    shares = (log_probs - weight * penalty).log_softmax(1)
    return shares if as_released else shares + log_probs.logsumexp(1, keepdim=True)


def row_modes(columns: Tensor) -> Tensor:
    """[n], the most frequent number in each row of column numbers [n, c]; the lowest of equals."""
    return F.one_hot(columns).sum(1).argmax(1)


def rollback_column(columns: Tensor, threshold: int, min_position: int) -> int | None:
    """The column that all beams over-trust, from each beam's strongest column at each step [n, t].

    None unless each beam's current column has come up more than `threshold` times and is `min_position` or
    later. Where beams differ it is the earliest column: the search goes back for all of them.
    """
    current = columns[:, -1:]
    frequent = (columns == current).sum(1) > threshold
    earliest = int(current.min())
    return earliest if bool(frequent.all()) and earliest >= min_position else None
