"""`LayerPlan`: what is done in one attention layer, made of the edits of all callbacks.

A plan's edit is composed and lies on the layer's device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from regaze.errors import CompositionError
from regaze.kernels import AttentionEdit, BoundEdit, Numbering, StatsRequest, compose
from regaze.toolkit.model.callback import Callback


class LayerPlan(NamedTuple):
    """The edit of one layer, and the callbacks that requested statistics of it.

    The first request is answered by the edit's own pass, each other one by a pass over the unedited layer.

    Attributes:
        edit: composed, on the layer's device. neutral: it changes nothing, and may request statistics.
        requests: as the callbacks made them. The statistics of all but the first come from passes of their
            own, `others`.
        numbering: of the layer, where tokens of the prompt have left it.
    """

    edit: BoundEdit
    neutral: bool
    requests: tuple[tuple[Callback, StatsRequest], ...] = ()
    others: tuple[BoundEdit, ...] = ()
    numbering: Numbering | None = None

    def passes(self) -> Iterator[tuple[int, BoundEdit]]:
        """The requests that an edited layer does not answer, by number, and what answers them."""
        return enumerate((self.edit, *self.others)) if self.neutral else enumerate(self.others, 1)


def plan_layer(
    callbacks: Sequence[Callback],
    edits: Sequence[AttentionEdit | None],
    device: torch.device,
    numbering: Numbering | None = None,
) -> LayerPlan | None:
    """One edit on `device` that does what those of all callbacks do; None where there is nothing to do.

    Raises:
        CompositionError: two callbacks request statistics of the edited rows.
    """
    given = [(p, edit) for p, edit in zip(callbacks, edits, strict=True) if edit is not None]
    active = [edit.to(device) if numbering is None else numbering.edit(edit) for _, edit in given]
    requests = [
        (p, edit.stats, own.stats)
        for (p, edit), own in zip(given, active, strict=True)
        if edit.stats is not None and own.stats is not None
    ]
    requests.sort(key=lambda each: not each[1].edited)  # only the edit's own pass knows the edited rows
    if len(requests) > 1 and requests[1][1].edited:
        raise CompositionError("two interventions ask for statistics of the edited rows of one layer")
    if len(active) == 1:
        edit: AttentionEdit | None = active[0]
    else:
        edit = compose([edit.replace(stats=None) for edit in active])
        if edit is not None and requests:
            edit = edit.replace(stats=requests[0][2])
    if edit is None or (edit.neutral and edit.stats is None):
        return None
    others = tuple(BoundEdit(own.as_edit) for _, _, own in requests[1:])
    asked = tuple((p, request) for p, request, _ in requests)
    return LayerPlan(BoundEdit(edit), edit.neutral, asked, others, numbering)


def rewritten(plan: LayerPlan | None, new: LayerPlan | None) -> LayerPlan | None:
    """The plan with the numbers of the new one in its own memory; where that cannot be, the new one."""
    if new is None:
        return None
    if plan is not None and len(plan.requests) == len(new.requests):
        pairs = zip(plan.requests, new.requests, strict=True)
        same = all(a is c and b is d for (a, b), (c, d) in pairs)
        if same and plan.edit.edit.overwrite(new.edit.edit):
            return plan
    return new._replace(edit=BoundEdit(new.edit.edit.with_own_values()))
