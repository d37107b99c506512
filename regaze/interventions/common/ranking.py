"""What several methods single out: half of the heads, columns with little, columns that stand out."""

from __future__ import annotations

import torch
from torch import Tensor


def half_of_heads(heads: int) -> int:
    """Half of the heads, rounded down, but at least one."""
    return max(1, heads // 2)


def least_attended(weights: Tensor, exist: Tensor, kept: Tensor) -> Tensor:
    """Which columns have the smallest weights, of equals the first: [B, n] bool.

    Args:
        weights: [B, n]. exist: [B, n] bool, which columns there are. kept: [B], how many to choose.
    """
    order = weights.masked_fill(~exist, torch.inf).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return exist & (rank < kept[:, None])


def saliency_map(mean: Tensor, valid: Tensor) -> Tensor:
    """The map S in [0, 1] from mean shifts [B, n], of which `valid` [B, n] exist; 0 for a flat map."""
    count = valid.sum(1, keepdim=True)
    values = torch.where(valid, mean, 0.0)
    mu = values.sum(1, keepdim=True) / count.clamp_min(1)
    variance = torch.where(valid, (values - mu) ** 2, 0.0).sum(1, keepdim=True) / (count - 1).clamp_min(1)
    reach = 3 * variance.sqrt()
    values = torch.minimum(torch.maximum(values, mu - reach), mu + reach)
    least = torch.where(valid, values, torch.inf).amin(1, keepdim=True)
    span = torch.where(valid, values, -torch.inf).amax(1, keepdim=True) - least
    return torch.where(valid & (span > 0), (values - least) / torch.where(span > 0, span, 1.0), 0.0)
