"""The fast path without a fused kernel: plain torch on any device, O(rows x Lk) memory, no loop at decode.

Rows that no edit changes go through `scaled_dot_product_attention`. Edited rows are computed in blocks whose
scores fit a fixed budget, so no float matrix is ever L x L. There, grouped queries share their keys through a
reshape, never a copy. A single row, as in a decode step, goes through torch_decode.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regaze.kernels.reference import (
    in_window,
    keys_share,
    log_denominator,
    measure,
    received,
    row_mask,
    row_sinks,
    visibility,
)
from regaze.kernels.spec import AttentionEdit, RowSelection, Stats, StatsRequest, UnmaskRect
from regaze.kernels.torch_decode import attend_row, is_row, row_stats
from regaze.kernels.torch_rows import (
    edited_softmax,
    grouped,
    masked_softmax,
    reweighted,
    row_scores,
    sdpa,
    weighted_values,
)

#: Scores held at once, in elements: 64 MiB in fp32, on a CPU 4 MiB (the size of its caches).
#: A block never has fewer than one query row.
BLOCK_ELEMENTS = 1 << 24
CPU_BLOCK_ELEMENTS = 1 << 20

#: Query rows of a block: a run of them, given ones (an index), or all of a call.
Part = slice | Tensor | None


def attend_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edit: AttentionEdit,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Stats | None]:
    """Edited attention of query [B, Hq, Lq, D] over key and value [B, Hkv, Lk, D or Dv]; see `attend`."""
    if is_row(query, edit.stats):
        out, stats = attend_row(query, key, value, edit, mask, scaling, softcap, sinks)
    else:
        out, stats = _Call(query, key, value, edit, mask, scaling, is_causal, softcap, sinks).attend()
    if edit.head_gain is not None:
        gain = edit.head_gain if edit.head_gain.dim() == 3 else edit.head_gain[..., None]
        out = out.float() if out.dtype == torch.float16 else out  # a gain may leave the range of fp16
        out = out * gain[..., None].to(out.dtype)
    return out if out.dtype == query.dtype else out.to(query.dtype), stats


def attention_stats_torch(
    query: Tensor,
    key: Tensor,
    request: StatsRequest,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Stats:
    """Statistics of plain attention; see `attention_stats`."""
    if is_row(query, request):
        return row_stats(query, key, request, mask, scaling, softcap, sinks)
    call = _Call(query, key, key, request.as_edit, mask, scaling, is_causal, softcap, sinks)
    return call.statistics(request)


def column_sums_torch(
    query: Tensor,
    key: Tensor,
    rows: RowSelection | None,
    row_weights: Tensor | None,
    largest: bool,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """What keys receive from `rows`, [B, Hq, Lk]: the sum, or the `largest`, block by block."""
    request = StatsRequest(rows, full_rows=True)
    call = _Call(query, key, key, request.as_edit, mask, scaling, is_causal, softcap, sinks)
    parts = call.parts(None if rows is None else rows.index)
    active = None if rows is None else rows.active
    actives, factors = (
        [None] * len(parts) if x is None else x.split(call.block_rows, 1) for x in (active, row_weights)
    )
    sums = torch.zeros(call.batch, call.heads, call.keys, device=query.device)
    for part, live, factor in zip(parts, actives, factors, strict=True):
        slices = _Block(call, part, all_keys=True).statistics(request, live).slices
        assert slices is not None
        here = received(slices, factor, largest)
        sums = torch.maximum(sums, here) if largest else sums + here
    return sums


class _Call:
    """One attention call: its tensors and its edit."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        edit: AttentionEdit,
        mask: Tensor | None,
        scaling: float,
        is_causal: bool,
        softcap: float | None,
        sinks: Tensor | None,
    ):
        self.q, self.k, self.v, self.edit, self.mask, self.scaling = q, k, v, edit, mask, scaling
        self.softcap, self.sinks = softcap, row_sinks(sinks, None)
        self.all_sinks = row_sinks(sinks, edit.sink)
        self.batch, self.heads, self.queries, _ = q.shape
        _, self.kv_heads, self.keys, _ = k.shape
        self._cache: tuple[Tensor, Tensor] | None = None
        self.is_causal = is_causal and mask is None and self.queries > 1
        self.sdpa_can_run = softcap is None and sinks is None  # torch's own kernels have neither
        selects = edit.rows is None or len(edit.rows.index) > 0
        self.changes_weights = edit.edits_mask or (edit.edits_rows and selects)

    def attend(self) -> tuple[Tensor, Stats | None]:
        """Plain attention with the changed rows in their place, and the statistics of the requested rows."""
        edit = self.edit
        stats = None if edit.stats is None else self.statistics(edit.stats)
        if not self.changes_weights:
            return self.unchanged(), stats
        index = edit.changed_rows
        if index is not None and len(index) == self.queries:
            index = None
        selected = not edit.edits_mask and (edit.rows is None or edit.rows.active is None)
        blocks = (_Block(self, part, selected) for part in self.parts(index))
        rows = torch.cat([block.output() for block in blocks], 2)
        return rows if index is None else self.unchanged().to(rows.dtype).index_copy(2, index, rows), stats

    def statistics(self, request: StatsRequest) -> Stats:
        """Statistics of the requested rows."""
        rows, active = request.rows, None if request.rows is None else request.rows.active
        all_keys = request.full_rows or request.columns is not None
        parts = self.parts(None if rows is None else rows.index)
        actives = [None] * len(parts) if active is None else active.split(self.block_rows, 1)
        stats = [
            _Block(self, part, all_keys=all_keys).statistics(request, a)
            for part, a in zip(parts, actives, strict=True)
        ]
        return stats[0] if len(stats) == 1 else _concatenate(stats)

    def unchanged(self) -> Tensor:
        """[B, Hq, Lq, Dv] with nothing of the edit but its sink, which is a factor of each row."""
        if self.edit.sink is None:
            return self.plain()
        lse = torch.cat([_Block(self, part).log_denominator() for part in self.parts(None)], 2)
        return self.plain() * keys_share(lse, self.edit.sink)[..., None]

    def plain(self) -> Tensor:
        """[B, Hq, Lq, Dv] without the edit, by torch's own kernels where they can."""
        if not self.sdpa_can_run:
            blocks = (_Block(self, part) for part in self.parts(None))
            return torch.cat([block.output(edited=False) for block in blocks], 2)
        mask, causal = self.mask, self.is_causal
        if causal and self.queries != self.keys:  # torch aligns causal rows to the first key, we to the last
            mask, causal = self.causal(None), False
        return sdpa(self.q, self.k, self.v, mask, self.scaling, causal)

    def cache(self) -> tuple[Tensor, Tensor]:
        """Keys [B Hkv, Lk, D] and values [B Hkv, Lk, Dv], see `grouped`."""
        if self._cache is None:
            self._cache = grouped(self.k), grouped(self.v)
        return self._cache

    def causal(self, part: Part, keys: int | None = None) -> Tensor:
        """[1, 1, R, keys] bool: which of the first keys (default: all) rows may see."""
        last = self.row_numbers(part)[:, None] + (self.keys - self.queries)
        return (torch.arange(self.keys if keys is None else keys, device=last.device) <= last)[None, None]

    def row_numbers(self, part: Part) -> Tensor:
        """[R] the numbers of query rows."""
        if isinstance(part, Tensor):
            return part
        start, stop = (0, self.queries) if part is None else (part.start, part.stop)
        return torch.arange(start, stop, device=self.q.device)

    def parts(self, index: Tensor | None) -> Sequence[slice | Tensor]:
        """The rows of `index` (None: all), divided into blocks."""
        size = self.block_rows
        if index is not None:
            return index.split(size)
        return [slice(i, min(i + size, self.queries)) for i in range(0, self.queries, size)]

    @property
    def block_rows(self) -> int:
        limit = min(BLOCK_ELEMENTS, CPU_BLOCK_ELEMENTS) if self.q.device.type == "cpu" else BLOCK_ELEMENTS
        return max(1, limit // (self.batch * self.heads * self.keys))


class _Block:
    """Query rows of a call with their scores materialised; computes only what is requested."""

    def __init__(self, call: _Call, part: Part = None, all_selected: bool = False, all_keys: bool = False):
        self.call, self.part, self.all_selected = call, part, all_selected
        self.keys = call.keys
        if call.is_causal and isinstance(part, slice) and not (all_keys or call.edit.unmask):
            # No row of the block sees keys after that of its last row.
            self.keys = max(1, part.stop + call.keys - call.queries)
        self.hidden, additive = self._visibility()
        self.scores = self._scores(additive)
        self.sinks, self.all_sinks = (_take_sinks(x, part) for x in (call.sinks, call.all_sinks))
        self._plain: tuple[Tensor, Tensor] | None = None
        self._edited: tuple[Tensor, Tensor] | None = None

    def output(self, edited: bool = True) -> Tensor:
        """[B, Hq, R, Dv] with or without the edit, before the head gain."""
        values = self.call.cache()[1]
        if self.keys != self.call.keys:
            values = values[:, : self.keys]
        return weighted_values((self.edited() if edited else self.plain())[1], values)

    def statistics(self, request: StatsRequest, active: Tensor | None) -> Stats:
        scores, weights = self.edited() if request.edited else self.plain()
        return measure(weights, scores, request, active, self.all_sinks if request.edited else self.sinks)

    def log_denominator(self) -> Tensor:
        """[B, Hq, R] of plain attention."""
        scores = self.scores if self.hidden is None else self.scores.masked_fill(self.hidden, -torch.inf)
        return log_denominator(scores, self.sinks)

    def plain(self) -> tuple[Tensor, Tensor]:
        """Scores and weights [B, Hq, R, keys] without the edit."""
        if self._plain is None:
            in_place = not self.call.edit.edits_scores  # an edit of scores still needs these
            self._plain = masked_softmax(self.scores, self.hidden, self.sinks, in_place)
        return self._plain

    def edited(self) -> tuple[Tensor, Tensor]:
        """Scores and weights [B, Hq, R, keys] under the edit."""
        if self._edited is None:
            edit = self.call.edit
            self._edited = self._edit() if edit.edits_rows or edit.sink is not None else self.plain()
        return self._edited

    def _edit(self) -> tuple[Tensor, Tensor]:
        edit, selected = self.call.edit, self._selected()
        if edit.edits_scores:
            scores, weights = edited_softmax(edit, self.scores, self.hidden, self.all_sinks, selected)
        elif edit.sink is not None:
            scores, weights = masked_softmax(self.scores, self.hidden, self.all_sinks, in_place=True)
        else:
            scores, weights = self.plain()
        plain = weights if edit.spread is None else self.plain()[1]
        return scores, reweighted(edit, weights, plain, selected, None)

    def _scores(self, additive: Tensor | None) -> Tensor:
        """[B, Hq, R, keys], fp32 or fp64."""
        call, keys = self.call, self.call.cache()[0]
        if self.keys != call.keys:
            keys = keys[:, : self.keys]
        rows = _take_rows(call.q, self.part, 2)
        return row_scores(rows, keys, call.scaling, call.softcap, additive)

    def _visibility(self) -> tuple[Tensor | None, Tensor | None]:
        """Keys that the rows may not see, and the additive part of the mask; None where there are none."""
        call, part = self.call, self.part
        unmask, windows = call.edit.unmask, call.edit.windows
        if call.is_causal:
            mask = call.causal(part, self.keys)
        elif call.mask is not None:
            mask = _take_rows(call.mask, part, 2)
        elif windows is None:
            return None, None
        else:
            own = call.row_numbers(part)[None, None] + (call.keys - call.queries)
            return ~in_window(windows, own, call.keys), None
        unmask = tuple(UnmaskRect(_take_rows(o.rows, part, 1), o.columns) for o in unmask)
        visible, additive = visibility(mask, mask.shape[2], self.keys, False, unmask, mask.device, windows)
        return ~visible, additive

    def _selected(self) -> Tensor | None:
        """[B, 1, R, 1] bool: which of the rows the edit selects; None: all of them."""
        call, rows = self.call, self.call.edit.rows
        if self.all_selected or rows is None or (rows.active is None and len(rows.index) == call.queries):
            return None
        return _take_rows(row_mask(rows, call.batch, call.queries, call.q.device), self.part, 2)


def _take_rows(x: Tensor, part: Part, dim: int) -> Tensor:
    """The rows of a block."""
    if part is None:
        return x
    if isinstance(part, slice):
        return x.narrow(dim, part.start, part.stop - part.start)
    return x.index_select(dim, part)


def _take_sinks(sinks: Tensor | None, part: Part) -> Tensor | None:
    """The sink logits of the rows of a block."""
    return sinks if sinks is None or sinks.shape[2] == 1 else _take_rows(sinks, part, 2)


def _concatenate(parts: list[Stats]) -> Stats:
    """Join the row blocks of one call along R."""
    joined = {}
    for name in Stats._fields:
        tensors = [getattr(stats, name) for stats in parts]
        joined[name] = None if tensors[0] is None else torch.cat(tensors, 2)
    return Stats(**joined)
