"""Logits of requests, combined before tokens are sampled, as methods combine them under transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regaze.serving.worker.requests import EditedRequest
from regaze.toolkit.model.logits import combine


class Mixing:
    """What happens to the logits of one model runner between its forward and its sampler.

    The contexts of a prompt are requests that run side by side. Where the last rows of all of them are in a
    step, their logits are combined, and each continues with the token that was sampled for the user's.
    Where some are missing, nothing is sampled for the others: `again` names them.

    Args:
        runner: vLLM's model runner. edits: its `EngineEdits`.
    """

    def __init__(self, runner: Any, edits: Any):
        self._runner, self._edits = runner, edits
        self._followers: list[tuple[int, list[int]]] = []  # rows of the batch: the user's, and those beside
        self._generators: dict[int, Any] = {}

    def begin(self) -> list[str]:
        """Combine the logits of the forward that has run; names of requests that have to run again."""
        self._followers = []
        self._edits.agree()
        state = self._runner.execute_model_state
        if state is None or state.logits is None:
            return []
        groups = self._groups()
        if not groups:
            return []
        with torch.inference_mode():
            logits = state.logits.float()
            again = [name for group in groups for name in self._combine(group, logits)]
        self._runner.execute_model_state = state._replace(logits=logits)
        return again

    def _groups(self) -> list[dict[str, tuple[int, EditedRequest]]]:
        """Requests with logits to combine whose last row has run, by context, with rows of the batch."""
        groups: dict[str, dict[str, tuple[int, EditedRequest]]] = {}
        discarded = self._runner.discard_request_mask.np
        for row, name in enumerate(self._runner.input_batch.req_ids):
            request = self._edits.request(name)
            if request is not None and request.combines and not discarded[row]:
                groups.setdefault(request.group, {})[request.context.name] = row, request
        return list(groups.values())

    def _combine(self, group: dict[str, tuple[int, EditedRequest]], logits: Tensor) -> list[str]:
        _, some = next(iter(group.values()))
        names = some.context.names
        if any(name not in group for name in names):
            for row, _ in group.values():
                self._discard(row)
            return [request.name for _, request in group.values()]
        rows = {name: group[name][0] for name in names}
        request = group[names[0]][1]
        with self._edits.failing(request), self._edits.together():
            combined = mixed(request, {name: logits[row][None, None] for name, row in rows.items()})
            if combined is not None:
                logits[rows[names[0]]] = combined[0, 0]
        if len(names) > 1:
            self._followers.append((rows[names[0]], [rows[name] for name in names[1:]]))
        return []

    def _discard(self, row: int) -> None:
        """Sample nothing from this row; vLLM would take back what its random numbers have been, on a GPU."""
        self._runner.discard_request_mask.np[row] = True
        generators = self._runner.input_batch.generators
        if row in generators:
            self._generators[row] = generators.pop(row)

    def follow(self, tokens: Tensor) -> None:
        """Tokens [rows, 1] have been sampled: second contexts go on with that of the user's."""
        for row, others in self._followers:
            tokens[others] = tokens[row].clone()

    def end(self) -> None:
        """The step is over."""
        self._runner.input_batch.generators.update(self._generators)
        self._generators = {}


def mixed(request: EditedRequest, logits: dict[str, Tensor]) -> Tensor | None:
    """The combined logits [1, 1, V] of a prompt's contexts, in fp32; None: they stay the user's own."""
    context = request.context
    with context.knowing(logits):
        given = [callback.combine_logits(context) for callback in request.combining]
        found = [combination for combination in given if combination is not None]
        return combine(context.logits(), found) if found else None
