"""A choice of query rows, which parts of an edit and requests share."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.caching import cached_property
from regaze.errors import ShapeError
from regaze.kernels.channels import describe
from regaze.kernels.placement import Placeable


def make_contiguous(frozen: Any, *names: str) -> None:
    """Make tensors of a frozen dataclass contiguous, as kernels read them; most are so already."""
    for name in names:
        tensor = getattr(frozen, name)
        if tensor is not None and not tensor.is_contiguous():
            object.__setattr__(frozen, name, tensor.contiguous())


@dataclass(frozen=True, eq=False)
class RowSelection(Placeable):
    """A choice of query rows.

    Attributes:
        index: [R] int64, increasing row numbers in 0..Lq-1 (the union over the batch).
        active: [B, R] bool, which of them count in which sample; None when all do.
    """

    index: Tensor
    active: Tensor | None = None

    def __post_init__(self) -> None:
        if self.index.dim() != 1 or self.index.dtype != torch.int64:
            raise ShapeError(f"RowSelection.index must be [R] int64, got {describe(self.index)}")
        active, count = self.active, len(self.index)
        if active is not None and (
            active.dim() != 2 or active.shape[1] != count or active.dtype != torch.bool
        ):
            raise ShapeError(f"RowSelection.active must be [B, R={count}] bool, got {describe(active)}")
        make_contiguous(self, "index", "active")

    @classmethod
    def where(cls, mask: Tensor) -> RowSelection:
        """Rows from a [B, Lq] bool mask. Waits for the device: call it once per prompt, not per layer."""
        if mask.dim() != 2 or mask.dtype != torch.bool:
            raise ShapeError(f"RowSelection.where takes a [B, Lq] bool mask, got {describe(mask)}")
        index = mask.any(0).nonzero().flatten()
        active = mask[:, index]
        return cls(index, None if bool(active.all()) else active)

    @cached_property
    def _compared(self) -> weakref.WeakKeyDictionary[RowSelection, bool]:
        return weakref.WeakKeyDictionary()

    def equals(self, other: RowSelection) -> bool:
        """Whether both choose the same rows. Waits for the device, once for all layers with these two."""
        if other not in self._compared:
            same = torch.equal(self.index, other.index) and (self.active is None) == (other.active is None)
            if same and self.active is not None and other.active is not None:
                same = torch.equal(self.active, other.active)
            self._compared[other] = same
        return self._compared[other]
