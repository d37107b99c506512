"""`BoundEdit`: an edit in many calls that differ in their tensors only, as a decode loop makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regaze.kernels.attend import attend, attention_stats, check_tensors, last_row
from regaze.kernels.backends import Backend, choose
from regaze.kernels.empty import is_empty
from regaze.kernels.spec import AttentionEdit, Stats


class BoundEdit:
    """An edit of one layer: its first call is checked and chooses the backend, later ones go straight there.

    Calls with another number of query rows, or with gradients switched on or off, are checked anew, and so
    are those of a sliding cache that has dropped keys. Batch, heads and head dimensions stay; keys only grow.

    Attributes:
        edit: the edit. checked: what the last checked call was. backend: of that call.
    """

    __slots__ = ("_attend", "backend", "checked", "edit")

    def __init__(self, edit: AttentionEdit):
        self.edit: AttentionEdit = edit
        self.backend: Backend | None = None
        self.checked: tuple[Any, ...] | None = None
        self._attend: Callable[..., tuple[Tensor, Stats | None]] | None = None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, first_key: int, **call: Any
    ) -> tuple[Tensor, Stats | None]:
        """As `attend`."""
        kind = "attend", query.shape[2], torch.is_grad_enabled()
        if kind == self.checked and self._attend is not None and not first_key:
            return self._attend(query, key, value, self.edit, scaling=scaling, **call)
        result = attend(query, key, value, self.edit, scaling=scaling, first_key=first_key, **call)
        self.bind(kind, query, key, value)
        return result

    def statistics(self, query: Tensor, key: Tensor, scaling: float, first_key: int, **call: Any) -> Stats:
        """As `attention_stats`, for the statistics that the edit requests."""
        kind, request = ("statistics", query.shape[2], torch.is_grad_enabled()), self.edit.stats
        assert request is not None
        if kind == self.checked and self.backend is not None and not first_key:
            return self.backend.attention_stats(query, key, request, scaling=scaling, **call)
        stats = attention_stats(query, key, request, scaling=scaling, first_key=first_key, **call)
        self.bind(kind, query, key, key)
        return stats

    def check(self, query: Tensor, key: Tensor, options: dict[str, Any]) -> None:
        """Raise what `attention_stats` does where tensors do not fit together."""
        check_tensors(query, key, key, options["mask"], options["softcap"], options["sinks"])
        self.edit.check(query.shape[0], query.shape[1], query.shape[2], key.shape[2])

    def bind(self, kind: tuple[Any, ...], query: Tensor, key: Tensor, value: Tensor) -> None:
        """Calls of this kind have been checked: from now on they go straight to their backend."""
        self.checked = None if is_empty(query, key) else kind
        self.backend = choose("auto", query, key, value, self.edit)
        self._attend = self.backend.attend_for(self.edit)


class StatsCall(NamedTuple):
    """The arguments of `BoundEdit.statistics`."""

    edit: BoundEdit
    query: Tensor
    key: Tensor
    scaling: float
    options: dict[str, Any]
    first_key: int

    def run(self) -> Stats:
        return self.edit.statistics(self.query, self.key, self.scaling, self.first_key, **self.options)

    def of_last_row(self) -> StatsCall:
        """The call with its last row alone, where no other one is requested."""
        request = self.edit.edit.stats
        if request is None or not request.is_last_row(self.query.shape[2]):
            return self
        query, mask = last_row(self.query, self.options["mask"])
        edit = BoundEdit(request.of_all_rows.as_edit)
        return self._replace(edit=edit, query=query, options={**self.options, "mask": mask})


def in_one_launch(calls: Sequence[StatsCall]) -> Stats | None:
    """Statistics of the layers of a step, [layers, ...].

    None where their requests or the backend allow no common launch.
    """
    request, alike = calls[0].edit.edit.stats, None
    kind = "statistics", calls[0].query.shape[2], torch.is_grad_enabled()
    for call in calls:
        edit, query, key, options = call.edit, call.query, call.key, call.options
        if call.first_key or edit.edit.stats is not request or is_empty(query, key):
            return None
        if edit.checked != kind:
            own = query.shape, key.shape, id(options["mask"]), options["softcap"], id(options["sinks"])
            if own != alike:  # as layers are most of the time
                edit.check(query, key, options)
                alike = own
            edit.bind(kind, query, key, key)
    backend = calls[0].edit.backend
    if backend is None or backend.stats_of_layers is None or request is None:
        return None
    return backend.stats_of_layers([call[1:5] for call in calls], request)
