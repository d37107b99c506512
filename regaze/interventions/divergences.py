"""How far two distributions are apart, in nats, from log-probabilities over a vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: [..., V] each -> [...], at most ln 2."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    return 0.5 * (_weighted(log_p, log_p - log_m) + _weighted(log_q, log_q - log_m)).sum(-1)


def reversed_jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(KL(m || p) + KL(m || q)) / 2, which some releases compute instead; unbounded."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    return _weighted(log_m, log_m - 0.5 * (log_p + log_q)).sum(-1)


def _weighted(log_p: Tensor, values: Tensor) -> Tensor:
    """p times values, 0 where p is."""
    return torch.where(log_p.isneginf(), 0.0, log_p.exp() * values)
