"""`HeadSource`: query heads that look where another head of their layer looks, each with its own values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from regaze.errors import BadParameterError, ShapeError
from regaze.kernels.channels import describe
from regaze.kernels.placement import Placeable


class HeadRule(Protocol):
    """Chooses source heads from what keys receive from other rows; a `Placeable`, if it holds tensors."""

    def __call__(self, received: Tensor, seen: Tensor) -> Tensor:
        """[B, Hq] int64, the source of each query head.

        Args:
            received: [B, Hq, Lk] fp32, attention on each key by the rows that count, its own row left out.
            seen: [B or 1, Hq or 1, Lk] fp32, how many rows these are: those that may look at the key.
        """
        ...


@dataclass(frozen=True, eq=False)
class HeadSource(Placeable):
    """Whose scores a query head has in the place of its own: given heads, or those that a rule chooses.

    A head's queries, keys and additive mask are those of its source; its values, its sink logit and all other
    parts of the edit stay its own.

    Attributes:
        index: [B or 1, Hq] int64, the source of each head (its own number: itself).
        rule: chooses instead, from plain attention in this call. For the forward of a whole prompt, in which
            row i is key i.
        rows: [B or 1, Lq] bool, which rows the rule counts; None: all.
    """

    index: Tensor | None = None
    rule: HeadRule | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.index is None) == (self.rule is None):
            raise BadParameterError("a HeadSource has either an `index` or a `rule`")
        index, rows = self.index, self.rows
        if index is not None and (index.dim() != 2 or index.dtype != torch.int64):
            raise ShapeError(f"HeadSource.index must be [B or 1, Hq] int64, got {describe(index)}")
        if rows is not None and (rows.dim() != 2 or rows.dtype != torch.bool):
            raise ShapeError(f"HeadSource.rows must be [B or 1, Lq] bool, got {describe(rows)}")
