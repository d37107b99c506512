"""Uniform columns: the attention that a method gives the image, without its choice of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from regaze.interventions.base import Intervention
from regaze.interventions.controls.base import InterventionVariant
from regaze.interventions.controls.variants import with_behaviour
from regaze.kernels import AttentionEdit
from regaze.toolkit.model.callback import keeps_edits, overrides, plans_ahead
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class UniformColumns(InterventionVariant):
    """The method with one weight for all image tokens: as much attention on the image, without its choice.

    In each row and head the image as a whole gets what the method gives it, and so does everything else;
    within the image, and within the rest, attention is divided as without the method. What a method loses by
    this is its idea which tokens matter; what stays is to look more at the image.
    """

    name: ClassVar[str] = "uniform-columns"
    summary: ClassVar[str] = (
        "as much attention on the image as the method gives it, without its choice of tokens"
    )
    source: ClassVar[str] = "ours"
    edits: ClassVar[str] = "as the method"
    cost: ClassVar[str] = "as the method; edited rows are computed twice, outside the fused kernels"

    def for_model(self, config: Any) -> Intervention:
        behaviour = _UniformCross if overrides(self.of, "edit_cross") else _Uniform
        promises = {"fixed_edits": keeps_edits(self.of), "plans_ahead": plans_ahead(self.of)}
        return with_behaviour(self.of, behaviour, **promises)


class _Uniform(Intervention):
    """Spreads the edits of the method beneath."""

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        edit = super().edit(layer, step, context)
        if edit is None or not edit.edits_rows:
            return edit
        return _spread(self, edit, layer, context.tokens.mask(Role.IMAGE), context)


class _UniformCross(_Uniform):
    """Also those of cross-attention, for methods that have them."""

    def edit_cross(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        edit = super().edit_cross(layer, step, context)
        if edit is None or not edit.edits_rows:
            return edit
        return _spread(self, edit, ~layer, context.cross_tokens.mask(Role.IMAGE), context)


def _spread(
    owner: Intervention, edit: AttentionEdit, key: int, image: Tensor, context: Context
) -> AttentionEdit:
    """The edit spread over the image; the same object for the same edit, as layers and steps expect."""
    known = context.state(owner).setdefault(UniformColumns, {})
    if key not in known or known[key][0] is not edit:
        known[key] = edit, edit.replace(spread=image)
    spread: AttentionEdit = known[key][1]
    return spread
