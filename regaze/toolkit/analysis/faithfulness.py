"""Tests of whether a map explains a model: pointing game, agreement with saliency, deletion and insertion.

A map gives a number to each region of an input (cell of an image, token of a text, frame of speech); higher
means more important. Hiding regions shows what the model needs: a `Scorer` gives the log-probability of the
model's answer with regions hidden. `occlusion` and `speech` have scorers; nothing here depends on how they
hide regions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy.stats import rankdata
from torch import Tensor

from regaze.display import Tabular, long_table, short_repr
from regaze.errors import BadParameterError, ShapeError

#: Maps [m, n] bool, which of n regions are hidden in each of m variants of an input, to [m, T], the
#: log-probability of each of the T tokens of the answer.
Scorer = Callable[[Tensor], Tensor]

# Known boxes --------------------------------------------------------------------------------------------


def points_inside(maps: Tensor, inside: Tensor) -> Tensor:
    """The pointing game (Zhang et al., arXiv:1608.00507): is the strongest cell on the object?

    Args:
        maps: [..., rows, columns].
        inside: bool, of a shape that broadcasts: cells whose centre is on the object (`boxes.holds_centre`).

    Returns:
        [...] float64: 1 for a hit, 0 for a miss; of tied cells the share that hits, so that a flat map scores
        as chance does. nan where a map has a nan.
    """
    flat, inside = _flat(maps), _flat(inside)
    strongest = flat == flat.amax(-1, keepdim=True)
    hits = (strongest & (inside > 0)).sum(-1) / strongest.sum(-1)
    return torch.where(flat.isnan().any(-1), torch.nan, hits.double())


def mass_inside(maps: Tensor, share: Tensor) -> Tensor:
    """The share of a map's mass that lies on the object; negative values count as 0.

    Args:
        maps: [..., rows, columns].
        share: of a shape that broadcasts: how much of each cell the object covers (`boxes.covered_share`).

    Returns:
        [...] float64 in [0, 1]; nan where a map has no mass. A flat map has the mean of `share`.
    """
    flat, share = _flat(maps).clamp_min(0), _flat(share)
    total = flat.sum(-1)
    return torch.where(total > 0, (flat * share).sum(-1) / total.where(total > 0, 1.0), torch.nan)


def shuffle_regions(maps: Tensor, seed: int = 0, *, dims: int = 1) -> Tensor:
    """Maps with their regions in random order, the control of every measure here.

    Args:
        maps: [..., n], or [..., rows, columns] with dims=2. Each map gets its own order.
    """
    flat = maps.flatten(-dims)
    noise = torch.rand(flat.shape, generator=torch.Generator().manual_seed(seed)).to(flat.device)
    return flat.gather(-1, noise.argsort(-1)).view(maps.shape)


def random_roll(maps: Tensor, seed: int = 0) -> Tensor:
    """Maps [..., n] rolled by a random number of regions, the last followed by the first.

    A control for maps whose neighbours are correlated, as in speech. Shuffling destroys that correlation, and
    makes any agreement look significant; rolling keeps it.
    """
    n = maps.shape[-1]
    if n < 2:
        return maps.clone()
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.randint(1, n, maps.shape[:-1], generator=generator).to(maps.device)[..., None]
    return maps.gather(-1, (torch.arange(n, device=maps.device) + shifts) % n)


# Agreement of two maps ----------------------------------------------------------------------------------


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of two maps along the last dimension, [..., n] -> [...] float64.

    nan where a map is constant.
    """
    _same_shape(first, second)
    a, b = (x.double() - x.double().mean(-1, keepdim=True) for x in (first, second))
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    # The centred values of a constant map are rounding errors, whose correlation is meaningless.
    level = torch.maximum(first.double().abs().amax(-1), second.double().abs().amax(-1)) * 1e-12
    varies = (a.abs().amax(-1) > level) & (b.abs().amax(-1) > level) if first.shape[-1] else norm > 0
    return torch.where(varies, (a * b).sum(-1) / norm.where(varies, 1.0), torch.nan).clamp(-1, 1)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman rank correlation, with the mean rank for ties; arguments and result as for `pearson`."""
    ranks = (torch.from_numpy(rankdata(x.double().cpu().numpy(), axis=-1)) for x in (first, second))
    return pearson(*ranks)


@dataclass(frozen=True, eq=False)
class Agreement(Tabular):
    """Agreement of two sets of maps [T, n].

    Attributes:
        per_token: [T], the correlation for each token; nan where a map is constant.
        pooled: the correlation of all T * n numbers at once.
    """

    per_token: Tensor
    pooled: float

    __repr__ = short_repr

    def table(self) -> dict[str, Sequence[Any]]:
        return {"token": range(len(self.per_token)), "correlation": self.per_token.tolist()}

    @property
    def mean(self) -> float:
        """The mean of `per_token` over the tokens where it is defined; nan without any."""
        return float(self.per_token.nanmean())


def agreement(maps: Tensor, saliency: Tensor, rank: bool = False) -> Agreement:
    """Correlation of maps with saliency, token by token and pooled.

    The pooled correlation is that of the speech study (arXiv:2509.18010), which flattens both matrices. It
    also rewards maps that are large for tokens with much saliency; the correlation per token does not.

    Args:
        maps, saliency: [T, n]. rank: Spearman's correlation instead of Pearson's.
    """
    correlation = spearman if rank else pearson
    return Agreement(correlation(maps, saliency), float(correlation(maps.flatten(), saliency.flatten())))


# Saliency by hiding -------------------------------------------------------------------------------------


def occlusion_saliency(score: Scorer, n: int) -> Tensor:
    """What hiding one region costs each token of the answer, [T, n] in nats.

    log p(token) - log p(token | region hidden), the occlusion test of Zeiler and Fergus (arXiv:1311.2901).
    """
    hidden = torch.cat([torch.zeros(1, n, dtype=torch.bool), torch.eye(n, dtype=torch.bool)])
    scores = score(hidden)
    return (scores[0] - scores[1:]).T


def random_mask_saliency(
    score: Scorer, n: int, *, masks: int = 500, share: float = 0.5, seed: int = 0
) -> Tensor:
    """Saliency from hiding many regions at once, [T, n] in nats, as RISE (arXiv:1806.07421) estimates it.

    The mean damage of the masks that hide a region minus that of the masks that show it. Unlike hiding single
    regions, it finds regions that can replace each other.

    Args:
        masks: number of masks; the error falls with its square root.
        share: probability that a mask hides a region.

    Raises:
        BadParameterError: fewer than two masks, or a share that hides none or all.
    """
    if masks < 2 or not 0 < share < 1:
        raise BadParameterError(f"masks must be at least 2 and share in (0, 1), got {masks} and {share}")
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(masks, n, generator=generator) < share
    plain = score(torch.zeros(1, n, dtype=torch.bool))
    damage = (plain - score(hidden)).double()
    hides = hidden.double()
    when_hidden = damage.T @ hides / hides.sum(0).clamp_min(1)
    when_shown = damage.T @ (1 - hides) / (1 - hides).sum(0).clamp_min(1)
    return when_hidden - when_shown


# Deletion and insertion ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Curve(Tabular):
    """Scores while regions are hidden (deletion) or shown again (insertion), the most important first.

    Attributes:
        share: [P] share of the regions that are hidden, or shown.
        score: [..., P] log-probability of the whole answer.
    """

    share: Tensor
    score: Tensor

    __repr__ = short_repr

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per map, numbered in order, and share."""
        scores = self.score.reshape(-1, len(self.share))
        return long_table({"map": range(len(scores)), "share": self.share.tolist()}, score=scores)

    @property
    def area(self) -> Tensor:
        """[...] area under the curve: the mean score over all shares."""
        return torch.trapezoid(self.score, self.share, dim=-1)


def perturbation_curve(
    score: Scorer,
    maps: Tensor,
    kind: Literal["deletion", "insertion"] = "deletion",
    *,
    points: int = 17,
    seed: int = 0,
) -> Curve:
    """Deletion or insertion curves (RISE, arXiv:1806.07421) of several maps of one input.

    Deletion hides the regions in order of importance; a good map makes the answer collapse early (a small
    area). Insertion starts with all regions hidden and shows them in that order (a large area is good).

    Args:
        maps: [..., n]; tied regions come in random order.
        points: P, evenly spaced from no region to all (numbers of regions are rounded).

    Raises:
        BadParameterError: an unknown kind, or fewer than two points.
    """
    if kind not in ("deletion", "insertion"):
        raise BadParameterError(f'kind must be "deletion" or "insertion", got {kind!r}')
    if points < 2:
        raise BadParameterError(f"a curve has at least 2 points, got {points}")
    n = maps.shape[-1]
    counts = torch.linspace(0, n, points).round().long().unique()
    chosen = _ranks(maps, seed)[..., None, :] < counts[:, None]  # [..., P, n]
    hidden = (chosen if kind == "deletion" else ~chosen).reshape(-1, n)
    # Curves have their ends in common, and often many points: score each variant once.
    distinct, where = torch.unique(hidden, dim=0, return_inverse=True)
    scores = score(distinct).sum(-1).double().cpu()[where].view(*maps.shape[:-1], len(counts))
    return Curve(counts.double() / n, scores)


def _ranks(maps: Tensor, seed: int) -> Tensor:
    """Rank of each region, 0 for the most important, [..., n]; ties in random order."""
    maps = maps.cpu()
    noise = torch.rand(maps.shape, generator=torch.Generator().manual_seed(seed))
    shuffle = noise.argsort(-1)
    order = shuffle.gather(-1, maps.gather(-1, shuffle).argsort(dim=-1, descending=True, stable=True))
    return order.argsort(-1)


def _flat(maps: Tensor) -> Tensor:
    if maps.dim() < 2:
        raise ShapeError(f"maps are [..., rows, columns], got {list(maps.shape)}")
    return maps.double().flatten(-2)


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ShapeError(f"maps to compare must have one shape: {list(first.shape)}, {list(second.shape)}")
