"""`ScoreGate`: query heads whose raw scores on some columns are low are damped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regaze.errors import BadParameterError, ShapeError
from regaze.kernels.channels import describe
from regaze.kernels.head_rules import top_heads
from regaze.kernels.placement import Placeable


@dataclass(frozen=True, eq=False)
class ScoreGate(Placeable):
    """Multiply the output of a head by `factor`, unless it is among the `kept` with the most scores.

    Heads are ranked by the sum of their scores on `columns`: scaled products of queries and keys, before soft
    cap, mask and all edits. Of equal heads the lower ones are kept, and all where the sums are 0, as in a
    prompt without any of the columns.

    Attributes:
        columns: [B or 1, n] bool, the keys to sum over (padded keys must not be among them).
        kept: how many heads of a row stay as they are.
        factor: of the other heads' output.
        rows: [B or 1, Lq] bool, the query rows it acts in; None: all.
    """

    columns: Tensor
    kept: int
    factor: float
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        for name, part, size in (("columns", self.columns, "n"), ("rows", self.rows, "Lq")):
            if part is not None and (part.dim() != 2 or part.dtype != torch.bool):
                raise ShapeError(f"ScoreGate.{name} must be [B or 1, {size}] bool, got {describe(part)}")
        if self.kept < 0:
            raise BadParameterError(f"ScoreGate.kept must not be negative, got {self.kept}")

    def gains(self, sums: Tensor) -> Tensor:
        """Factors [B, Hq, Lq] of heads with these sums of scores, [B, Hq, Lq]."""
        stays = top_heads(sums, self.kept)
        if self.rows is not None:
            stays = stays | ~self.rows[:, None]
        return torch.where(stays, 1.0, self.factor)

    def gains_of(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """The same from query [B, Hq, Lq, D] and key [B, Hkv, Lk, D]."""
        return self.gains(score_sums(query, key, self.columns, scaling))


def score_sums(query: Tensor, key: Tensor, columns: Tensor, scaling: float) -> Tensor:
    """Sums of scaled products over columns [B or 1, n] of the keys, [B, Hq, Lq] fp32 (or fp64).

    The sum of q k_j over some keys is q times the sum of these keys: one product per row and head.
    """
    batch, heads, queries, dim = query.shape
    precise = torch.promote_types(query.dtype, torch.float32)
    summed = columns[:, None, None].to(precise) @ key[:, :, : columns.shape[1]].to(precise)  # [B, Hkv, 1, D]
    grouped = query.reshape(batch, key.shape[1], -1, dim).to(precise)
    return (grouped @ summed.mT).view(batch, heads, queries) * scaling
