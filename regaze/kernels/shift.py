"""Shifted keys and values: how a backend runs an edit with `shifts`.

A shifted key or value is one like any other. So no kernel knows of this: they change before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regaze.kernels.key_value_shift import shifted
from regaze.kernels.reference import row_mask
from regaze.kernels.spec import AttentionEdit, RowSelection, Stats


def shifting(
    attend: Callable[..., tuple[Tensor, Stats | None]],
) -> Callable[..., tuple[Tensor, Stats | None]]:
    """The `attend` of a backend, for edits with `shifts` as well.

    Statistics of the unedited rows are those of the keys as they came, from a pass of their own. Where some
    rows see shifted keys and others do not, and the edit has nothing else, only those that do are computed
    twice.
    """

    def attend_shifted(
        query: Tensor, key: Tensor, value: Tensor, edit: AttentionEdit, **options: Any
    ) -> tuple[Tensor, Stats | None]:
        if not edit.shifts:
            return attend(query, key, value, edit, **options)
        rest, rows = edit.with_own_keys, edit.shifts[0].rows
        after, changed = rest, shifted(edit.shifts, key, value)
        if rest.stats is not None and not rest.stats.edited:
            after = rest.without_stats
        if rows is None:
            stats = None if after is rest else attend(query, key, value, rest, **options)[1]
            out, edited = attend(query, *changed, after, **options)
            return out, edited if stats is None else stats
        plain, stats = attend(query, key, value, rest, **options)
        if not len(rows.index):
            return plain, stats
        if after.neutral and after.stats is None:
            some = attend(_rows(query, rows), *changed, after, **_options_of(rows, query, key, options))[0]
            if rows.active is not None:
                some = torch.where(rows.active[:, None, :, None], some, _rows(plain, rows))
            return plain.index_copy(2, rows.index, some), stats
        out, edited = attend(query, *changed, after, **options)
        seeing = row_mask(rows, query.shape[0], query.shape[2], query.device)
        out = torch.where(seeing, out, plain)
        return out, stats if edited is None or stats is None else _merged(edited, stats, seeing, rest)

    return attend_shifted


def _rows(x: Tensor, rows: RowSelection) -> Tensor:
    return x.index_select(2, rows.index)


def _options_of(rows: RowSelection, query: Tensor, key: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call with some of the rows."""
    mask, last = options["mask"], key.shape[2] - query.shape[2]
    if mask is not None:
        mask = _rows(mask, rows)
    elif options["is_causal"]:
        columns = torch.arange(key.shape[2], device=key.device)
        mask = (columns <= rows.index[:, None] + last)[None, None]
    return {**options, "mask": mask, "is_causal": False}


def _merged(seen: Stats, unseen: Stats, seeing: Tensor, edit: AttentionEdit) -> Stats:
    """Statistics of the rows that see shifted keys, `seeing` [B, 1, Lq, 1], and of those that do not."""
    requested = None if edit.stats is None else edit.stats.rows
    if requested is not None:
        seeing = _rows(seeing, requested)

    def merged(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return None
        return torch.where(seeing if a.dim() == 4 else seeing[..., 0], a, b)

    return Stats(*map(merged, seen, unseen))
