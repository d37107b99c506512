"""Sliding caches: edits and statistics number columns from the first key, also after it was dropped.

The cache of a layer with a sliding window holds the last keys only. Its first key then has a number above 0,
and the columns of an edit before it have no effect.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F

from regaze.kernels.channels import Channels
from regaze.kernels.spec import COLUMN_PARTS, AttentionEdit, Stats, StatsRequest, UnmaskRect, Windows

_CACHED = "after dropped keys"


def shift_edit(edit: AttentionEdit, first: int) -> AttentionEdit:
    """The same edit for keys of which the first `first` were dropped.

    It is stored with the edit until `first` changes, so that layers which share the edit share the result.
    """
    if not first:
        return edit
    known, shifted = edit.backend_cache.get(_CACHED, (0, None))
    if known != first:
        shifted = _shifted(edit, first)
        edit.backend_cache[_CACHED] = first, shifted
    return shifted


def _shifted(edit: AttentionEdit, first: int) -> AttentionEdit:
    changes: dict[str, Any] = {
        name: part[..., first:] for name in COLUMN_PARTS if (part := getattr(edit, name)) is not None
    }
    if edit.spread is not None:
        changes["spread"] = edit.spread[:, first:]
    if (gate := edit.score_gate) is not None:
        changes["score_gate"] = replace(gate, columns=gate.columns[:, first:])
    if edit.channels is not None:
        changes["channels"] = _channels(edit.channels, first)
    if edit.shifts:
        changes["shifts"] = tuple(shift.without_first(first) for shift in edit.shifts)
    if edit.unmask:
        changes["unmask"] = tuple(UnmaskRect(rect.rows, rect.columns[:, first:]) for rect in edit.unmask)
    if edit.windows is not None:
        changes["windows"] = _windows(edit.windows, first)
    if edit.stats is not None:
        changes["stats"] = _request(edit.stats, first)
    return edit.replace(**changes)


def _channels(channels: Channels, first: int) -> Channels:
    groups, weights = channels.groups, channels.weights
    return Channels(
        groups=None if groups is None else groups[:, first:],
        num_groups=channels.num_groups,
        weights=None if weights is None else weights[..., first:],
        outstanding=channels.outstanding,
    )


def _windows(windows: Windows, first: int) -> Windows:
    """Spans count back from a row's own key: only the first keys, which stay visible, shift."""
    if windows.first is None:
        return Windows(windows.span, max(0, windows.sink - first))
    return Windows(windows.span, windows.sink, windows.first - first)


def _request(request: StatsRequest, first: int) -> StatsRequest:
    channels, columns = request.channels, request.columns
    return StatsRequest(
        rows=request.rows,
        channels=None if channels is None else _channels(channels, first),
        entropy=request.entropy,
        top1=request.top1,
        lse=request.lse,
        columns=None if columns is None else (columns - first).clamp_min(-1),
        full_rows=request.full_rows,
        edited=request.edited,
    )


def shift_stats(stats: Stats, request: StatsRequest, first: int) -> Stats:
    """Statistics of such keys, with columns numbered from the first key of the sequence."""
    if first and stats.top_column is not None:
        stats = stats._replace(top_column=stats.top_column + first)
    if first and stats.slices is not None and request.full_rows:
        stats = stats._replace(slices=F.pad(stats.slices, (first, 0)))
    return stats
