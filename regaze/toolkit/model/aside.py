"""The arguments of a forward that runs beside a generation, to measure something before it (`run_aside`)."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from regaze.toolkit.model import compat
from regaze.toolkit.model.branches import Branch
from regaze.toolkit.model.context import Context


def inputs_aside(context: Context, branch: Branch | None = None) -> dict[str, Any]:
    """The user's prompts, or those of a branch, as arguments of a forward without a cache.

    Positions count the visible tokens of each row, as in a stacked forward; multi-axis ones are left to the
    model.
    """
    inputs = {**context.inputs, **({} if branch is None else branch.inputs)}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    shown = None if branch is None else branch.inputs.get("attention_mask")
    # A static cache comes with a mask [B, 1, L, Lk], which does not fit a forward without one.
    mask = context.visible.to(context.device).long() if shown is None else shown
    inputs["attention_mask"] = mask
    positions: Tensor | None = inputs.pop("position_ids", None)
    one_axis = not compat.has_position_axes(context.model) and (positions is None or positions.dim() == 2)
    if one_axis and "position_ids" in inspect.signature(context.model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    return inputs
