"""GIFT's gaze shift: how much more a token attends to an image token than the token before it.

The shifts are measured in the prefill that generates: an edit carries `RowShifts.request`, and the callback
gets the weights [B, H, R, n] of R rows at n image columns.

Source: Qi et al., "Capturing Gaze Shifts for Guidance" (arXiv:2510.22067).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regaze.kernels import Placeable, RowSelection, StatsRequest
from regaze.toolkit.prompts.columns import column_index


@dataclass(frozen=True, eq=False)
class RowShifts(Placeable):
    """Increases of attention from each token to the next.

    Attributes:
        request: what an edit must carry to measure them.
        compared: [B, R - 1] bool, which of the R measured rows, from the second on, count.
    """

    request: StatsRequest
    compared: Tensor

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor) -> RowShifts:
        """Of the tokens whose row is compared with the row before it, on columns: [B, L] bool each."""
        before = rows.roll(-1, 1)
        before[:, -1] = False
        measured = RowSelection.where(rows | before)
        index = measured.index
        # The row before is measured as well; only the first token of all has none.
        compared = rows[:, index[1:]] & (index[1:] == index[:-1] + 1)
        return cls(StatsRequest(rows=measured, columns=column_index(columns)), compared)

    @property
    def index(self) -> Tensor:
        """[B, n] the columns, as from `column_index`."""
        assert self.request.columns is not None
        return self.request.columns

    @property
    def counts(self) -> Tensor:
        """[B] how many rows are compared in each sample."""
        return self.compared.sum(1)

    def positive(self, slices: Tensor) -> Tensor:
        """max(a_i - a_(i-1), 0) of measured slices [B, H, R, n]: [B, H, R - 1, n], 0 in rows not compared."""
        return (slices[:, :, 1:] - slices[:, :, :-1]).clamp_min(0) * self.compared[:, None, :, None]


def mean_shift(shifts: Tensor, counts: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Mean positive shift per column over the rows and over the `heads` heads with most of it.

    Args:
        shifts: [B, H, R, n] positive shifts, 0 in rows that do not count.
        counts: [B] rows that count.

    Returns:
        [B, n], and [B] the total shift of all heads, per row.
    """
    by_head = shifts.sum((2, 3))
    chosen = by_head.argsort(dim=1, descending=True, stable=True)[:, :heads]
    rows = counts.to(shifts).clamp_min(1)
    columns = shifts.sum(2).gather(1, chosen[..., None].expand(-1, -1, shifts.shape[3]))
    return columns.mean(1) / rows[:, None], by_head.sum(1) / rows
