"""Keys and values in pages, as serving engines store them, and a table of where those of a sequence lie."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regaze.kernels.spec import AttentionEdit, UnmaskRect


class Pages(NamedTuple):
    """Where the keys of each sequence are in caches [P, Hkv, page, D].

    Attributes:
        table: [B, n] int32 or int64, the numbers of the pages of each sequence, in order. What a sequence
            does not need for its length is never looked at.
        lengths: [B] int32 or int64 keys of each sequence.
    """

    table: Tensor
    lengths: Tensor

    def capacity(self, page_size: int) -> int:
        """How many keys a row of the table can name."""
        return self.table.shape[1] * page_size

    def exist(self, page_size: int) -> Tensor:
        """[B, capacity] bool: which keys of the table belong to the sequences."""
        keys = torch.arange(self.capacity(page_size), device=self.lengths.device)
        return keys < self.lengths[:, None]

    def gather(self, cache: Tensor) -> Tensor:
        """The keys or values [B, Hkv, capacity, D] of a cache [P, Hkv, page, D]; zeros where none belong.

        Room that no sequence uses may hold anything, NaN too.
        """
        _, heads, page_size, dim = cache.shape
        exist = self.exist(page_size)
        if not exist.shape[1]:
            return cache.new_zeros(len(exist), heads, 0, dim)
        is_used = exist.view(*self.table.shape, page_size)[..., 0]
        pages = cache.transpose(1, 2)[self.table.masked_fill(~is_used, 0).long()]  # [B, n, page, Hkv, D]
        return pages.flatten(1, 2).masked_fill_(~exist[..., None, None], 0).transpose(1, 2)

    def mask(self, queries: int, page_size: int) -> Tensor:
        """[B, 1, Lq, capacity] bool: what the last Lq tokens of each sequence see, causally."""
        keys = torch.arange(self.capacity(page_size), device=self.lengths.device)
        own_keys = self.lengths[:, None] - queries + torch.arange(queries, device=keys.device)
        return (keys <= own_keys[..., None])[:, None]

    def inside(self, edit: AttentionEdit, page_size: int) -> AttentionEdit:
        """The edit without openings of keys that do not exist."""
        if not edit.unmask:
            return edit
        exist = self.exist(page_size)
        opened = (
            UnmaskRect(rect.rows, rect.columns & exist[:, : rect.columns.shape[1]]) for rect in edit.unmask
        )
        return edit.replace(unmask=tuple(opened))
