"""How far attention rows look back, and how much later rows look back at each token, per head.

Source: "Attention Illuminates LLM Reasoning: The Preplan-and-Anchor Rhythm" (arXiv:2510.13554). Both signals
are linear in the attention, so they are summed per head over blocks of rows, and no attention map is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regaze.display import short_repr
from regaze.errors import BadParameterError, ShapeError
from regaze.toolkit.record.host_copies import to_host


@dataclass(frozen=True)
class Horizon:
    """Which distances, rows and keys the signals use.

    Attributes:
        window: W, the distance at which WAAD is clipped; 10 in the paper.
        low, high: the FAI of a token is the mean over the rows `low` to `high` tokens after it. The paper's
            analysis goes from the token to the end (0, None), its training from 10 to 100 (50 in version 1).
        skip: number of first keys of the text to leave out; rows are renormalised over the other keys. Heads
            that look at the first token only reach farthest back, and would dilute the global heads. 0 in the
            paper.
    """

    window: int = 10
    low: int = 0
    high: int | None = None
    skip: int = 0

    def __post_init__(self) -> None:
        ordered = self.high is None or self.low <= self.high
        if self.window < 1 or self.low < 0 or self.skip < 0 or not ordered:
            raise BadParameterError(f"window must be at least 1, 0 <= low <= high and 0 <= skip; got {self}")


#: The paper's analysis.
PAPER = Horizon()


class HeadSignals(NamedTuple):
    """The signals of each head, for the R tokens of a response.

    Attributes:
        distance: [..., R] mean distance back of each row.
        waad: [..., R] the same, with distances clipped at the window.
        fai: [..., R] mean weight on each token in the later rows of its horizon; nan without such rows.
    """

    distance: Tensor
    waad: Tensor
    fai: Tensor

    def __repr__(self) -> str:
        return short_repr(self)


def head_signals(
    weights: Tensor, positions: Tensor, horizon: Horizon = PAPER, *, first: int = 0
) -> HeadSignals:
    """The signals of attention rows.

    Args:
        weights: [..., R, N] rows of the response's tokens over all keys; rows sum to 1.
        positions: [R] columns of these tokens among the keys, increasing.
        horizon: window and rows of the signals. first: the first column that is not padding.

    Raises:
        ShapeError: not one row for each position.
    """
    if weights.dim() < 2 or weights.shape[-2] != len(positions):
        raise ShapeError(f"weights must be [..., R, N] with R = {len(positions)}, got {list(weights.shape)}")
    positions = positions.to(weights.device)
    sums = SignalSums(weights.shape[:-2], positions, weights.shape[-1], horizon, first)
    sums.add(weights, slice(0, len(positions)))
    return HeadSignals(*to_host(sums.signals()))


class SignalSums:
    """Accumulates `HeadSignals` over blocks of a response's rows.

    Args:
        shape: leading dimensions of the weights, such as (Hq,).
        positions, horizon, first: as for `head_signals`, on the weights' device. keys: number of keys N.
    """

    positions: Tensor
    horizon: Horizon
    skipped: int
    distance: Tensor
    waad: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        positions: Tensor,
        keys: int,
        horizon: Horizon,
        first: int,
    ):
        self.positions, self.horizon, self.skipped = positions, horizon, first + horizon.skip
        count, device = len(positions), positions.device
        self.distance, self.waad = (torch.zeros(*shape, count, device=device) for _ in range(2))
        self.received: Tensor = torch.zeros(*shape, keys, device=device)

    def add(self, weights: Tensor, rows: slice) -> None:
        """Add a block of rows.

        Args:
            weights: [..., r, K] over the first K keys. rows: which of the response's rows they are.
        """
        columns = torch.arange(weights.shape[-1], device=weights.device)
        if self.horizon.skip:
            weights = weights * (columns >= self.skipped)
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        back = (self.positions[rows, None] - columns).clamp_min(0)
        self.distance[..., rows] = (weights * back).sum(-1)
        self.waad[..., rows] = (weights * back.clamp_max(self.horizon.window)).sum(-1)
        self.received[..., : len(columns)] += (weights * self._in_horizon(columns, rows)).sum(-2)

    def signals(self) -> HeadSignals:
        counts = self._in_horizon(self.positions, slice(None)).sum(0)  # [R] rows in each token's horizon
        received = self.received[..., self.positions]
        fai = torch.where(counts > 0, received / counts.clamp_min(1), torch.nan)
        return HeadSignals(self.distance, self.waad, fai)

    def _in_horizon(self, columns: Tensor, rows: slice) -> Tensor:
        """[r, columns] bool: whether a row counts for the FAI of a column's token."""
        back = self.positions[rows, None] - columns
        inside = back >= self.horizon.low
        return inside if self.horizon.high is None else inside & (back <= self.horizon.high)
