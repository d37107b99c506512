"""Uniform sinks: the attention that a method lets rows drop, without its choice of how much which row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.interventions.base import Intervention
from regaze.interventions.controls.base import InterventionVariant
from regaze.interventions.controls.variants import with_behaviour
from regaze.kernels import AttentionEdit
from regaze.toolkit.model.callback import keeps_edits, plans_ahead
from regaze.toolkit.model.context import Context


@dataclass(frozen=True)
class UniformSink(InterventionVariant):
    """The method with one sink for all rows that it gives any: the mean of theirs, in each sample and head.

    The softmax of these rows has as much beside the keys as under the method, on average. What a method loses
    by this is its idea which rows need how much; what stays is that rows may drop attention.
    """

    name: ClassVar[str] = "uniform-sink"
    summary: ClassVar[str] = "as much attention to drop as the method allows, the same in every row"
    source: ClassVar[str] = "ours"
    edits: ClassVar[str] = "as the method"
    cost: ClassVar[str] = "as the method"

    def for_model(self, config: Any) -> Intervention:
        promises = {"fixed_edits": keeps_edits(self.of), "plans_ahead": plans_ahead(self.of)}
        return with_behaviour(self.of, _Uniform, **promises)


class _Uniform(Intervention):
    """Evens the sinks of the method beneath."""

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        edit = super().edit(layer, step, context)
        if edit is None or edit.sink is None:
            return edit
        known = context.state(self).setdefault(UniformSink, {})  # the same object for the same edit
        if layer not in known or known[layer][0] is not edit:
            known[layer] = edit, edit.replace(sink=evened(edit.sink))
        even: AttentionEdit = known[layer][1]
        return even


def evened(sink: Tensor) -> Tensor:
    """Sinks [B or 1, Hq or 1, Lq] with the mean of e^sink over the rows that have one, in each of these."""
    some = sink > -torch.inf
    mean = sink.logsumexp(-1, keepdim=True) - some.sum(-1, keepdim=True).clamp_min(1).log()
    return torch.where(some, mean, sink)
