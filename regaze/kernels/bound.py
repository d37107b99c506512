"""`BoundEdit`: an edit in many calls that differ in their tensors only, as a decode loop makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regaze.kernels.attend import attend, attention_stats
from regaze.kernels.backends import Backend, choose
from regaze.kernels.empty import is_empty
from regaze.kernels.spec import AttentionEdit, Stats


class BoundEdit:
    """An edit of one layer: its first call is checked and chooses the backend, later ones go straight there.

    Calls with another number of query rows, or with gradients switched on or off, are checked anew, and so
    are those of a sliding cache that has dropped keys. Batch, heads and head dimensions stay; keys only grow.
    """

    __slots__ = ("_backend", "_checked", "edit")

    def __init__(self, edit: AttentionEdit):
        self.edit: AttentionEdit = edit
        self._backend: Backend | None = None
        self._checked: tuple[Any, ...] | None = None  # what the last checked call was

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, first_key: int, **call: Any
    ) -> tuple[Tensor, Stats | None]:
        """As `attend`."""
        kind = "attend", query.shape[2], torch.is_grad_enabled()
        if kind == self._checked and self._backend is not None and not first_key:
            return self._backend.attend(query, key, value, self.edit, scaling=scaling, **call)
        result = attend(query, key, value, self.edit, scaling=scaling, first_key=first_key, **call)
        self._bind(kind, query, key, value)
        return result

    def statistics(self, query: Tensor, key: Tensor, scaling: float, first_key: int, **call: Any) -> Stats:
        """As `attention_stats`, for the statistics that the edit requests."""
        kind, request = ("statistics", query.shape[2], torch.is_grad_enabled()), self.edit.stats
        assert request is not None
        if kind == self._checked and self._backend is not None and not first_key:
            return self._backend.attention_stats(query, key, request, scaling=scaling, **call)
        stats = attention_stats(query, key, request, scaling=scaling, first_key=first_key, **call)
        self._bind(kind, query, key, key)
        return stats

    def _bind(self, kind: tuple[Any, ...], query: Tensor, key: Tensor, value: Tensor) -> None:
        self._checked = None if is_empty(query, key) else kind
        self._backend = choose("auto", query, key, value, self.edit)
