"""The policy of GIFT: the image is re-weighted in the heads that attend to it most, and the query with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.kernels import TritonPart, pad_channels


@dataclass(frozen=True)
class AmplifyTopHeads:
    """Re-weight the image in the heads with most image mass, and amplify the query by the gain of that.

    Of the channels named, `image` and `query` are 0/1 groups and `salient` holds the weights w_j >= 0 of the
    image keys (0 elsewhere). Per row, the `heads` heads with most image mass have their image weights
    multiplied by w_j; the pooled ratio of those heads' image mass after and before is the realised gain r;
    the `heads` heads with most query mass have their query weights multiplied by `query_gain` * r. Every row
    keeps its total mass. The choice of heads couples the heads of a row, not rows or samples; of equal
    masses the lower head number wins.

    Source: GIFT (arXiv:2510.22067), equations of the enhancement step.

    Attributes:
        channels: number K of channels.
        image, query, salient: channel numbers.
        heads: how many heads are chosen by image mass and, separately, by query mass.
        query_gain: the paper's beta.
    """

    channels: int
    image: int
    query: int
    salient: int
    heads: int
    query_gain: float = 1.0

    def __post_init__(self) -> None:
        named = (self.image, self.query, self.salient)
        if len(set(named)) != 3 or not all(0 <= channel < self.channels for channel in named):
            raise BadParameterError(
                f"image, query and salient must be three channels in 0..{self.channels - 1}, got {named}"
            )
        if self.heads < 0 or not self.query_gain > 0.0:
            raise BadParameterError(
                f"heads must not be negative and query_gain must be positive, got {self.heads} and "
                f"{self.query_gain}"
            )

    def __call__(self, masses: Tensor) -> Tensor:
        image, query, salient = (masses[..., k] for k in (self.image, self.query, self.salient))
        top_image, top_query = top_heads(image, self.heads), top_heads(query, self.heads)  # [B, Hq, R]
        before, after = ((top_image * mass).sum(1, keepdim=True) for mass in (image, salient))
        tiny = torch.finfo(masses.dtype).tiny
        gain = torch.where(before > 0, after / before.clamp_min(tiny), 1.0)
        columns = [torch.ones_like(image)] * self.channels
        columns[self.image] = (~top_image).to(masses.dtype)
        columns[self.salient] = top_image.to(masses.dtype)
        columns[self.query] = torch.where(top_query, self.query_gain * gain, 1.0)
        coefficients = torch.stack(columns, -1)
        total = masses.sum(-1, keepdim=True) - salient[..., None]
        edited = (masses * coefficients).sum(-1, keepdim=True)
        scale = torch.where(edited > 0, total / edited.clamp_min(tiny), 1.0)
        return coefficients * scale

    def triton_part(self, heads: int) -> TritonPart:
        named = (self.image, self.query, self.salient)
        selectors = pad_channels(*([float(k == channel) for k in range(self.channels)] for channel in named))
        return TritonPart(
            "regaze.interventions.gift.policy_triton:amplify_top_heads",
            (*selectors, float(self.heads), self.query_gain),
            couples_heads=True,
        )


def top_heads(masses: Tensor, count: int) -> Tensor:
    """Which of the heads have the `count` largest masses: [B, Hq, R] -> bool [B, Hq, R]."""
    rank = masses.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < count
