"""A trial of a request's methods on its prompt, before an engine has it."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_

import torch

from regaze.errors import UnsupportedModelError
from regaze.kernels import AttentionEdit
from regaze.serving.worker.chunks import divided
from regaze.serving.worker.heads import divides_not
from regaze.serving.worker.requests import EditedRequest
from regaze.toolkit.model.callback import Callback, overrides, prompt_needs
from regaze.toolkit.model.layer_plan import plan_layer


def try_edits(request: EditedRequest, *, shared_heads: bool = False) -> str | None:
    """Make all that is known of the edits of a prompt and of the first row after it, together.

    What methods do with statistics or hidden states is not known before these are there.

    Args:
        shared_heads: several processes share the heads of a layer.

    Returns:
        Why the prompt's rows must run in one forward; None: they need not.

    Raises:
        RegazeError: as the engine would meet it, which ends requests that it has begun.
    """
    reason, length, cpu = None, request.prompt_length, torch.device("cpu")
    request.context.device = cpu
    for first, stop in ((0, length), (length, length + 1)):
        (rows,) = request.rows(0, first, first, stop)
        tried: Sequence[AttentionEdit | None] = [None] * len(request.callbacks)
        known = [
            _is_known(callback, rows.step) and callback not in request.capturing
            for callback in request.callbacks
        ]
        for layer in range(request.context.num_layers):
            edits = [
                callback.edit(layer, rows.step, request.context) if is_known else None
                for callback, is_known in zip(request.callbacks, known, strict=True)
            ]
            if all(map(is_, edits, tried)):  # as most layers have those of the one before
                continue
            tried = edits
            for edit in edits:
                if edit is not None:
                    _check(edit, shared_heads)
            plan_layer(request.callbacks, edits, cpu)
            if rows.step == 0 and reason is None:
                reason = _divided(edits)
    return reason


def _check(edit: AttentionEdit, shared_heads: bool) -> None:
    """Raise UnsupportedModelError for an edit that an engine does not have."""
    if edit.shifts:
        raise UnsupportedModelError("this method shifts keys and values in the cache; use transformers")
    if shared_heads and (obstacle := divides_not(edit)) is not None:
        raise UnsupportedModelError(f"{obstacle}: start the engine with tensor_parallel_size=1")


def _divided(edits: Sequence[AttentionEdit | None]) -> str | None:
    reasons = (divided(edit) for edit in edits if edit is not None)
    return next((reason for reason in reasons if reason is not None), None)


def _is_known(callback: Callback, step: int) -> bool:
    if callback.needs_hidden_states or callback.records:
        return False
    measures = overrides(callback, "on_stats")
    return not measures if step or prompt_needs(callback) else True
