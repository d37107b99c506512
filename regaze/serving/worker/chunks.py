"""An edit of a whole prompt, cut to the rows of it that run in one forward and to the keys there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from regaze.errors import CompositionError
from regaze.kernels import AttentionEdit, Channels, RowSelection, ScoreGate, StatsRequest
from regaze.kernels.spec import COLUMN_PARTS, UnmaskRect

#: What `AttentionEdit.rows` selects the rows of.
_OF_ROWS = (*COLUMN_PARTS, "head_score_gain", "channels", "policy")


def divided(edit: AttentionEdit) -> str | None:
    """Why the rows of a prompt under this edit must run in one forward; None: they need not.

    Waits for the device: call it once per prompt.
    """
    if edit.head_source is not None and edit.head_source.rule is not None:
        return "heads are chosen from all rows"
    for opened in edit.unmask:
        if _come_later(opened.rows, opened.columns):
            return "rows may look at later tokens"
    gate = edit.score_gate
    if gate is not None and (gate.rows is None or _come_later(gate.rows, gate.columns)):
        return "heads are ranked by keys that come later"
    return None


def _come_later(rows: Tensor, columns: Tensor) -> bool:
    """Whether one of the columns [B, n] is behind one of the rows [B, L]."""
    if not bool(rows.any()) or not bool(columns.any()):
        return False
    return int(columns.any(0).nonzero().max()) > int(rows.any(0).nonzero().min())


def chunk(edit: AttentionEdit, start: int, stop: int) -> AttentionEdit:
    """The edit of rows start..stop of a prompt over its first `stop` keys.

    Raises:
        CompositionError: it relates these rows to later ones.
    """
    if edit.head_source is not None and edit.head_source.rule is not None:
        raise CompositionError("heads are chosen from all rows of the prompt: it must run in one piece")
    changes: dict[str, Any] = {}
    for name in (*COLUMN_PARTS, "spread"):
        if (part := getattr(edit, name)) is not None:
            changes[name] = part[..., :stop]
    if edit.channels is not None:
        changes["channels"] = _narrowed(edit.channels, stop)
    if edit.rows is not None:
        rows = _rows(edit.rows, start, stop)
        if not len(rows.index):
            changes.update(dict.fromkeys(_OF_ROWS))
        changes["rows"] = rows if len(rows.index) else None
    for name in ("sink", "head_gain"):
        if (part := getattr(edit, name)) is not None and part.dim() == 3:
            changes[name] = part[..., start:stop]
    if edit.unmask:
        changes["unmask"] = tuple(_rectangle(each, start, stop) for each in edit.unmask)
    if edit.score_gate is not None:
        changes["score_gate"] = _gate(edit.score_gate, start, stop)
    if edit.stats is not None:
        changes["stats"] = _request(edit.stats, start, stop)
    return edit.replace(**changes)


def _rows(rows: RowSelection, start: int, stop: int) -> RowSelection:
    here = (rows.index >= start) & (rows.index < stop)
    return RowSelection(rows.index[here] - start, None if rows.active is None else rows.active[:, here])


def _narrowed(channels: Channels, stop: int) -> Channels:
    groups, weights = channels.groups, channels.weights
    return replace(
        channels,
        groups=None if groups is None else groups[:, :stop],
        weights=None if weights is None else weights[..., :stop],
    )


def _rectangle(opened: UnmaskRect, start: int, stop: int) -> UnmaskRect:
    rows = opened.rows[:, start:stop]
    if bool(rows.any()) and bool(opened.columns[:, stop:].any()):
        raise CompositionError("rows may look at later tokens of the prompt: it must run in one piece")
    return UnmaskRect(rows, opened.columns[:, :stop])


def _gate(gate: ScoreGate, start: int, stop: int) -> ScoreGate:
    rows: Tensor | None = None if gate.rows is None else gate.rows[:, start:stop]
    if (rows is None or bool(rows.any())) and bool(gate.columns[:, stop:].any()):
        raise CompositionError("heads are ranked by keys that come later: the prompt must run in one piece")
    return replace(gate, columns=gate.columns[:, :stop], rows=rows)


def _request(request: StatsRequest, start: int, stop: int) -> StatsRequest | None:
    """None: none of the rows that it is about is among these."""
    changes: dict[str, Any] = {}
    if request.rows is not None:
        rows = _rows(request.rows, start, stop)
        if not len(rows.index):
            return None
        changes["rows"] = rows
    if request.channels is not None:
        changes["channels"] = _narrowed(request.channels, stop)
    if request.columns is not None:  # of keys that come later nothing can be seen
        changes["columns"] = request.columns.masked_fill(request.columns >= stop, -1)
    return replace(request, **changes)
