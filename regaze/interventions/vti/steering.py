"""VTI's turn of a hidden state, and a vision tower steered by it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from regaze.kernels import Placeable
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context

#: Of a unit vector, at strength 1.
STEP = 0.1


def steer(hidden: Tensor, unit: Tensor, strength: float) -> Tensor:
    """Turn `hidden` [..., D] towards unit vectors [..., D] (or 0, which turn nothing); its norm stays."""
    if strength == 0.0:
        return hidden
    x = hidden.float()
    turned = F.normalize(x, dim=-1) + STEP * strength * unit
    return (F.normalize(turned, dim=-1) * x.norm(dim=-1, keepdim=True)).to(hidden.dtype)


@dataclass(frozen=True, eq=False)
class UnitDirections(Placeable):
    """Directions of length 1, fp32: `rows` [layers, D] or [blocks, T, D]; copied once per device."""

    rows: Tensor

    @classmethod
    def of(cls, directions: Tensor) -> UnitDirections:
        return cls(F.normalize(directions.float(), dim=-1))


class SteeredTower(Callback):
    """The vision tower under VTI, while text directions are fitted."""

    needs_pixels = True

    def __init__(self, directions: Tensor, strength: float):
        self._unit, self._strength = UnitDirections.of(directions), strength

    def edit_vision_mlp(self, block: int, hidden: Tensor, context: Context) -> Tensor:
        return steer(hidden, self._unit.to(hidden.device).rows[block], self._strength)
