"""A mean with its principal components, of each group of features."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_and_components(x: Tensor, rank: int = 1, as_released: bool = False) -> tuple[Tensor, Tensor]:
    """The mean of samples, and the mean plus their first unit principal components, per group of features.

    The sign of a component is that which makes the largest entry of its left singular vector positive. It is
    a convention: nothing makes the component agree with the mean.

    Args:
        x: [N, groups, F]. as_released: the sign of each further component is that of the *first* left
            singular vector at the place of the component's largest entry.

    Returns:
        [groups, F] each, fp64.
    """
    x = x.double().transpose(0, 1)
    mean = x.mean(1)
    left, values, right = torch.linalg.svd(x - mean[:, None], full_matrices=False)
    left, values, right = left[..., :rank], values[:, :rank], right[:, :rank]
    places = left.abs().argmax(1, keepdim=True)  # [groups, 1, rank]
    varies = values > 1e-12 * x.flatten(1).norm(dim=1, keepdim=True)
    signs = _at(left, places, as_released).sign() * varies
    return mean, mean + (signs[..., None] * right).sum(1)


def _at(left: Tensor, places: Tensor, first: bool) -> Tensor:
    """[groups, rank] the entries of left singular vectors [groups, N, rank] at `places`."""
    source = left[..., :1].expand_as(left) if first else left
    return source.gather(1, places)[:, 0]
