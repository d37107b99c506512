"""Edits of several requests as one edit of a batch, so that their rows run in one call."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from operator import is_not
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.kernels import AttentionEdit, Channels, Windows
from regaze.kernels.spec import COLUMN_PARTS

#: Parts [1, Hq or 1, n], and parts [1, Hq]; channels, windows and sinks are stacked below.
_HEADS = ("head_score_gain", "head_gain")
_STACKED = (*COLUMN_PARTS, *_HEADS, "sink", "channels", "windows")
_ALONE = ("score_gate", "unmask", "shifts", "head_source", "stats")


def kind(edit: AttentionEdit) -> Hashable | None:
    """Edits of one kind can be stacked; None: this one runs alone. It is that of a single row."""
    if any(getattr(edit, name) not in (None, ()) for name in _ALONE) or edit.spread is not None:
        return None
    if edit.rows is not None or (edit.head_gain is not None and edit.head_gain.dim() == 3):
        return None
    parts = tuple(name for name in _STACKED if getattr(edit, name) is not None)
    channels, windows = edit.channels, edit.windows
    groups = None if channels is None else _kind_of(channels)
    return parts, edit.policy, groups, None if windows is None else (windows.sink, windows.first is None)


def _kind_of(channels: Channels) -> Hashable:
    weights = channels.weights
    return channels.num_groups, None if weights is None else len(weights), channels.outstanding


class Stacks:
    """Stacked edits: of each place (a layer and a kind) the newest, with the edits that it was made of."""

    def __init__(self) -> None:
        self._newest: dict[Hashable, tuple[Sequence[AttentionEdit], AttentionEdit]] = {}

    def of(self, edits: Sequence[AttentionEdit], place: Hashable) -> AttentionEdit:
        """One edit for a batch of single rows, each edited by one of `edits` of one kind."""
        if len(edits) == 1:
            return edits[0]
        parts, stack = self._newest.get(place, ((), None))
        if stack is None or len(parts) != len(edits) or any(map(is_not, parts, edits)):
            stack = stacked(edits)
            self._newest[place] = edits, stack
        return stack

    def clear(self) -> None:
        """Forget them: a request has ended, whose edits they have."""
        self._newest.clear()


def stacked(edits: Sequence[AttentionEdit]) -> AttentionEdit:
    """Edits of one sample and one kind as the edit of a batch."""
    first, changes = edits[0], dict[str, Any]()
    for name in COLUMN_PARTS:
        if getattr(first, name) is not None:
            changes[name] = _columns([getattr(edit, name) for edit in edits], float(name.endswith("gain")))
    for name in _HEADS:
        if getattr(first, name) is not None:
            changes[name] = torch.cat([getattr(edit, name) for edit in edits])
    if first.sink is not None:
        changes["sink"] = _columns([edit.sink for edit in edits if edit.sink is not None], 0.0)
    if first.channels is not None:
        changes["policy"] = first.policy
        changes["channels"] = _channels([edit.channels for edit in edits if edit.channels is not None])
    if first.windows is not None:
        changes["windows"] = _windows([edit.windows for edit in edits if edit.windows is not None])
    return first.replace(**changes)


def _columns(parts: Sequence[Tensor], neutral: float) -> Tensor:
    """[B, Hq or 1, n] of parts [1, Hq or 1, n], the longest of which has n columns."""
    width, heads = max(part.shape[-1] for part in parts), max(part.shape[1] for part in parts)
    padded = (F.pad(part, (0, width - part.shape[-1]), value=neutral) for part in parts)
    return torch.cat([part.expand(-1, heads, -1) for part in padded])


def _windows(parts: Sequence[Windows]) -> Windows:
    firsts = [part.first for part in parts if part.first is not None]
    spans = torch.cat([part.span for part in parts])
    return Windows(spans, parts[0].sink, torch.cat(firsts) if firsts else None)


def _channels(parts: Sequence[Channels]) -> Channels:
    width = max(part.length for part in parts)

    def joined(name: str, axis: int) -> Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        if tensors[0] is None:
            return None
        return torch.cat([F.pad(each, (0, width - each.shape[-1])) for each in tensors], axis)

    first = parts[0]
    return Channels(joined("groups", 0), first.num_groups, joined("weights", 1), first.outstanding)
