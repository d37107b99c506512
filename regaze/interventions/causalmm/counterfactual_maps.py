"""CausalMM's counterfactual maps in the vision tower, and the factors of patches made of them."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.errors import UnsupportedModelError

Kind = Literal["uniform", "random", "shuffle", "reversed"]


def counterfactual_map(attention: Tensor, kind: Kind, seed: int = 0) -> Tensor:
    """Another map [N, H, T, T] in the place of a tower's attention.

    "uniform": the mean of all entries of each head; "reversed": the largest entry minus each; "random": drawn
    from 0 to 2; "shuffle": the entries of each head in a random order. Draws are the same for all images.
    """
    if kind == "uniform":
        return attention.mean((-2, -1), keepdim=True).expand_as(attention)
    if kind == "reversed":
        return attention.amax((-2, -1), keepdim=True) - attention
    generator = torch.Generator().manual_seed(seed)
    heads, tokens = attention.shape[1], attention.shape[2]
    if kind == "random":
        drawn = 2.0 * torch.rand(heads, tokens, tokens, generator=generator)
        return drawn.to(attention).expand_as(attention)
    order = torch.stack([torch.randperm(tokens * tokens, generator=generator) for _ in range(heads)])
    return permuted(attention, order)


def permuted(attention: Tensor, order: Tensor) -> Tensor:
    """The entries of each head in another order [H, T T]: out.flat[i] = in.flat[order[i]]."""
    index = order.to(attention.device).expand(len(attention), -1, -1)
    return attention.flatten(2).gather(2, index).view_as(attention)


def patch_gain(attention: Tensor, patches: int) -> Tensor:
    """[N, patches], one factor per patch from maps [N, H, T, T]: resized as a picture, mean over heads.

    Raises:
        UnsupportedModelError: patches that are no square.
    """
    side = math.isqrt(patches)
    if side * side != patches:
        raise UnsupportedModelError(
            f"a map is resized to the square of a tower's patches, but this one has {patches} of them"
        )
    resized = F.interpolate(attention.float(), (side, side), mode="bilinear", align_corners=False)
    return resized.mean(1).flatten(1)
