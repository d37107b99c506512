"""Keys and values of sequences out of a paged cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pages(NamedTuple):
    """The cache of one layer: keys [P, Hkv, page, D] and values [P, Hkv, page, Dv], in any strides."""

    keys: Tensor
    values: Tensor

    def of(self, table: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Keys [B, Hkv, longest, D] and values of sequences whose pages are `table` [B, n]."""
        return _gathered(self.keys, table, longest), _gathered(self.values, table, longest)


def _gathered(cache: Tensor, table: Tensor, longest: int) -> Tensor:
    _, heads, size, width = cache.shape
    pages = cache[table[:, : -(-longest // size)].long()]  # [B, n, Hkv, page, D]
    batch, count = pages.shape[:2]
    rows = pages.transpose(1, 2).reshape(batch, heads, count * size, width)
    return rows[:, :, :longest]


def row_mask(lengths: Tensor, longest: int) -> Tensor:
    """[B, 1, 1, longest] bool, the keys of sequences of these lengths [B] that their last row sees."""
    return (torch.arange(longest, device=lengths.device) < lengths[:, None])[:, None, None]
