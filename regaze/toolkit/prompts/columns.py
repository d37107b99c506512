"""Columns of attention rows, chosen by a [B, L] mask: their numbers, and values put at their places.

Samples of a batch may have different numbers of columns; missing ones are -1.
"""

from __future__ import annotations

from torch import Tensor


def column_index(mask: Tensor) -> Tensor:
    """Columns of a [B, L] bool mask, in increasing order: [B, n] int64, -1 where a sample has fewer."""
    count = int(mask.sum(1).max()) if mask.numel() else 0
    order = (~mask).int().argsort(dim=1, stable=True)[:, :count]
    return order.masked_fill(~mask.gather(1, order), -1)


def scatter_columns(values: Tensor, index: Tensor, length: int, fill: float) -> Tensor:
    """[B, length] with values [B, n] at their columns `index` (of `column_index`), and `fill` elsewhere."""
    wide = values.new_full((values.shape[0], length + 1), fill)  # the last column takes the values of -1
    return wide.scatter(1, index.masked_fill(index < 0, length), values)[:, :length]
