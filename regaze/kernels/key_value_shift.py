"""`KeyValueShift`: vectors that are added once to keys and values, before they enter the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.errors import BadParameterError, ShapeError
from regaze.kernels.channels import describe
from regaze.kernels.placement import Placeable
from regaze.kernels.rows import RowSelection


@dataclass(frozen=True, eq=False)
class KeyValueShift(Placeable):
    """Vectors that are added once to the keys and values of chosen tokens.

    Attributes:
        groups: [B or 1, n] int64: which vectors the first n keys get, 1..G; 0: none.
        keys, values: [G, Hkv, D] and [G, Hkv, Dv]; None: these stay as they are.
        how: "add", x + d. "turn": |x| unit(x / |x| + (1 + max(0, -cos(x, d))) d), in each head, so that
            lengths stay and d counts in these.
        rows: the query rows of this call that see them; None: all. Later calls find them in the cache.
    """

    groups: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None
    how: Literal["add", "turn"] = "add"
    rows: RowSelection | None = None

    def __post_init__(self) -> None:
        if self.groups.dim() != 2 or self.groups.dtype != torch.int64:
            raise ShapeError(f"KeyValueShift.groups must be [B or 1, n] int64, got {describe(self.groups)}")
        for name, part in (("keys", self.keys), ("values", self.values)):
            if part is not None and part.dim() != 3:
                raise ShapeError(f"KeyValueShift.{name} must be [G, Hkv, D], got {describe(part)}")
        if self.how not in ("add", "turn"):
            raise BadParameterError(f'KeyValueShift.how must be "add" or "turn", got {self.how!r}')

    def without_first(self, count: int) -> KeyValueShift:
        """The same without the first keys, which a sliding window has dropped."""
        return replace(self, groups=self.groups[:, count:])

    def entering(self, cached: int) -> KeyValueShift | None:
        """What is left for keys that come after `cached` ones, which are shifted already; None: nothing."""
        if not cached:
            return self
        if self.groups.shape[1] <= cached:
            return None
        groups = self.groups.clone()
        groups[:, :cached] = 0
        return replace(self, groups=groups)


def shifted(shifts: tuple[KeyValueShift, ...], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Key [B, Hkv, L, D] and value [B, Hkv, L, Dv] with all that is added to them, each to what they are now.

    Keys behind those that a shift names are left alone, to the bit.

    Raises:
        ShapeError: vectors of other heads, or more groups than keys.
    """
    changed = []
    for name, x in (("keys", key), ("values", value)):
        total: Tensor | None = None
        for shift in shifts:
            vectors: Tensor | None = getattr(shift, name)
            if vectors is not None:
                part = _added(shift, name, vectors, x)
                total = part if total is None else total + part
        changed.append(x if total is None else (x.float() + total).to(x.dtype))
    return changed[0], changed[1]


def _added(shift: KeyValueShift, name: str, vectors: Tensor, x: Tensor) -> Tensor:
    """[B, Hkv, L, D] fp32, what a shift adds to x."""
    batch, heads, length, width = x.shape
    groups = shift.groups
    if vectors.shape[1:] != (heads, width) or groups.shape[1] > length or groups.shape[0] not in (1, batch):
        raise ShapeError(
            f"KeyValueShift.{name} is {describe(vectors)} for groups {describe(groups)}, but there are "
            f"{name} [B={batch}, Hkv={heads}, Lk={length}, {width}]"
        )
    table = F.pad(vectors.float(), (0, 0, 0, 0, 1, 0))  # group 0 gets nothing
    groups = F.pad(groups, (0, length - groups.shape[1]))
    added = table[groups].transpose(1, 2)  # [B or 1, Hkv, L, D]
    if shift.how == "add":
        return added
    x = x.float()
    unit, size = F.normalize(x, dim=-1), x.norm(dim=-1, keepdim=True)
    against = 1.0 + F.cosine_similarity(x, -added, dim=-1).clamp_min(0.0)
    turned = F.normalize(unit + against[..., None] * added, dim=-1) * size
    return torch.where((groups > 0)[:, None, :, None], turned - x, 0.0)
