"""The fast path without a fused kernel: plain torch on any device, O(rows x Lk) memory, no loop at decode.

Rows that nothing touches go through `scaled_dot_product_attention`. Touched rows are computed in blocks whose
scores fit a fixed budget, so no float matrix is ever L x L. There, grouped queries share their keys through a
reshape, never a copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.kernels.edit import AttentionEdit, Opening, Rows, Stats, StatsRequest
from regaze.kernels.reference import edit_scores, measure, row_mask, visibility

#: Scores held at once, in elements: 64 MiB in fp32, on a CPU 4 MiB (what its caches hold and malloc keeps).
#: A block never has fewer than one query row.
BLOCK_ELEMENTS = 1 << 24
CPU_BLOCK_ELEMENTS = 1 << 20


def attend_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edit: AttentionEdit,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
) -> tuple[Tensor, Stats | None]:
    """Edited attention of q [B, Hq, Lq, D] over k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv]; see `attend`."""
    call = _Call(q, k, v, edit, mask, scaling, is_causal)
    out, stats = call.decode() if call.queries == 1 else call.prefill()
    if edit.head_gain is not None:
        gain = edit.head_gain if edit.head_gain.dim() == 3 else edit.head_gain[..., None]
        out = out * gain[..., None].to(out.dtype)
    return out, stats


def observe_torch(
    q: Tensor, k: Tensor, request: StatsRequest, *, mask: Tensor | None, scaling: float, is_causal: bool
) -> Stats:
    """Statistics of plain attention; see `observe`."""
    return _Call(q, k, k, request.alone, mask, scaling, is_causal).statistics(request)


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
    ):
        self.q, self.k, self.v, self.edit, self.mask, self.scaling = q, k, v, edit, mask, scaling
        self.batch, self.heads, self.queries, _ = q.shape
        self.kv_heads, self.keys = k.shape[1], k.shape[2]
        self.is_causal = is_causal and mask is None and self.queries > 1
        selects = edit.rows is None or len(edit.rows.index) > 0
        self.changes_weights = bool(edit.openings) or (edit.edits_rows and selects)

    def decode(self) -> tuple[Tensor, Stats | None]:
        """A single row: one block gives its output and its statistics."""
        block, request = _Block(self, None), self.edit.stats
        out = block.output() if self.changes_weights else self.plain()
        return out, None if request is None else self.statistics(request, block)

    def prefill(self) -> tuple[Tensor, Stats | None]:
        """Plain attention with the changed rows in their place, and the statistics of the requested rows."""
        edit = self.edit
        stats = None if edit.stats is None else self.statistics(edit.stats)
        if not self.changes_weights:
            return self.plain(), stats
        index = self.all_rows() if edit.changed_rows is None else edit.changed_rows
        selected = not edit.openings and (edit.rows is None or edit.rows.active is None)
        blocks = (_Block(self, part, selected) for part in index.split(self.block_rows))
        rows = torch.cat([block.output() for block in blocks], 2)
        return rows if len(index) == self.queries else self.plain().index_copy(2, index, rows), stats

    def statistics(self, request: StatsRequest, row: _Block | None = None) -> Stats:
        """The by-products of the requested rows; `row` is a single row that is already computed."""
        if self.queries == 1 and (request.rows is None or len(request.rows.index) == 1):
            active = None if request.rows is None else request.rows.active
            return (row or _Block(self, None)).statistics(request, active)
        rows = Rows(self.all_rows()) if request.rows is None else request.rows
        actives: Iterable[Tensor | None] = repeat(None)
        if rows.active is not None:
            actives = rows.active.split(self.block_rows, 1)
        parts = zip(rows.index.split(self.block_rows), actives, strict=False)
        stats = [_Block(self, index).statistics(request, a) for index, a in parts]
        return stats[0] if len(stats) == 1 else _concatenate(stats)

    def plain(self) -> Tensor:
        """[B, Hq, Lq, Dv] without the edit, by torch's own kernels."""
        k, v, mask, causal = self.k, self.v, self.mask, self.is_causal
        if causal and self.queries != self.keys:  # torch aligns causal rows to the first key, we to the last
            mask, causal = self.causal(None), False
        shared = self.heads != self.kv_heads
        if shared and k.is_cuda and (mask is not None or k.shape[-1] != v.shape[-1]):
            # CUDA's fused kernels share keys only without a mask; the fallback would be an L x L matrix.
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
            shared = False
        out = F.scaled_dot_product_attention(
            self.q, k, v, mask, is_causal=causal, scale=self.scaling, enable_gqa=shared
        )
        if mask is not None and mask.is_floating_point():
            # A row of a dtype's minimum is as fully masked as one of -inf, but torch averages its values.
            empty = mask.amax(-1, keepdim=True) <= torch.finfo(mask.dtype).min / 2
            out = out.masked_fill(empty, 0.0)
        return out

    def causal(self, index: Tensor | None) -> Tensor:
        """[1, 1, R, Lk] bool: what the rows `index` (None: all) may see."""
        rows = self.all_rows() if index is None else index
        last = rows[:, None] + (self.keys - self.queries)
        return (torch.arange(self.keys, device=last.device) <= last)[None, None]

    def all_rows(self) -> Tensor:
        return torch.arange(self.queries, device=self.q.device)

    @property
    def block_rows(self) -> int:
        limit = min(BLOCK_ELEMENTS, CPU_BLOCK_ELEMENTS) if self.q.device.type == "cpu" else BLOCK_ELEMENTS
        return max(1, limit // (self.batch * self.heads * self.keys))


class _Block:
    """The query rows `index` (None: all) of a call, scores materialised; computes only what is asked for."""

    def __init__(self, call: _Call, index: Tensor | None, all_selected: bool = False):
        self.call, self.index, self.all_selected = call, index, all_selected

    def output(self) -> Tensor:
        """[B, Hq, R, Dv] under the edit, before the head gain."""
        call, weights = self.call, self.edited[1]
        if weights.dtype != call.v.dtype:
            weights = weights.to(call.v.dtype)
        packed = weights.view(call.batch, call.kv_heads, -1, call.keys)
        return torch.matmul(packed, call.v).view(*weights.shape[:3], call.v.shape[-1])

    def statistics(self, request: StatsRequest, active: Tensor | None) -> Stats:
        scores, weights = self.edited if request.edited else self.plain
        return measure(weights, scores, request, active)

    @cached_property
    def plain(self) -> tuple[Tensor, Tensor]:
        """Scores and weights [B, Hq, R, Lk] without the edit."""
        return _softmax(self._scores, self._hidden[0])

    @cached_property
    def edited(self) -> tuple[Tensor, Tensor]:
        """Scores and weights [B, Hq, R, Lk] under the edit."""
        edit, keys = self.call.edit, self.call.keys
        if not edit.edits_rows:
            return self.plain
        scores, weights = self._edited_softmax() if edit.edits_scores else self.plain
        final = weights
        if edit.policy is not None and edit.channels is not None:
            coefficients = edit.policy(edit.channels.masses(weights))
            final = final * edit.channels.per_key(coefficients, keys)
        if edit.value_gain is not None:
            final = final * edit.columns("value_gain", keys)[:, :, None].to(final.dtype)
        if final is not weights and self._selected is not None:
            final = torch.where(self._selected, final, weights)
        return scores, final

    def _edited_softmax(self) -> tuple[Tensor, Tensor]:
        edit, hidden, selected = self.call.edit, self._hidden[0], self._selected
        scores = edit_scores(self._scores, edit)
        if selected is not None:
            scores = torch.where(selected, scores, self._scores)
        if edit.bias is not None:  # a key biased by -inf is as hidden as a masked one
            removed = edit.columns("bias", self.call.keys)[:, :, None] == -torch.inf
            removed = removed if selected is None else removed & selected
            hidden = removed if hidden is None else hidden | removed
        return _softmax(scores, hidden)

    @cached_property
    def _scores(self) -> Tensor:
        """[B, Hq, R, Lk], fp32 or fp64; finite values where a key is hidden."""
        call, additive = self.call, self._hidden[1]
        q = call.q if self.index is None else call.q.index_select(2, self.index)
        # The query group joins the rows. The product is scaled inside: the range of fp16 is small.
        packed = q.reshape(call.batch * call.kv_heads, -1, q.shape[-1])
        keys = call.k.reshape(call.batch * call.kv_heads, call.keys, -1)
        scores = torch.baddbmm(q.new_empty(()), packed, keys.mT, beta=0, alpha=call.scaling)
        scores = scores.view(call.batch, call.heads, -1, call.keys)
        if scores.dtype != torch.float64:
            scores = scores.float()
        return scores if additive is None else scores + additive.to(scores.dtype)

    @cached_property
    def _hidden(self) -> tuple[Tensor | None, Tensor | None]:
        """Keys that the rows may not see, and what the mask adds to the scores; None: none, nothing."""
        call, mask, openings = self.call, self.call.mask, self.call.edit.openings
        if call.is_causal:
            mask = call.causal(self.index)
        elif mask is not None and self.index is not None:
            mask = mask.index_select(2, self.index)
        if mask is None:
            return None, None
        if self.index is not None:
            openings = tuple(Opening(o.rows.index_select(1, self.index), o.columns) for o in openings)
        visible, additive = visibility(mask, mask.shape[2], call.keys, False, openings, mask.device)
        return ~visible, additive

    @cached_property
    def _selected(self) -> Tensor | None:
        """[B, 1, R, 1] bool: which of the rows the edit selects; None: all of them."""
        call, rows = self.call, self.call.edit.rows
        if self.all_selected or rows is None or (rows.active is None and len(rows.index) == call.queries):
            return None
        chosen = row_mask(rows, call.batch, call.queries, call.q.device)
        return chosen if self.index is None else chosen.index_select(2, self.index)


def _softmax(scores: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Masked scores and their softmax, in which hidden keys, and so fully masked rows, are zeros."""
    if hidden is None:
        return scores, torch.softmax(scores, -1)
    scores = scores.masked_fill(hidden, -torch.inf)
    # The NaN of a fully masked row is filled over here, that of its gradient in the line above.
    return scores, torch.softmax(scores, -1).masked_fill(hidden, 0.0)


def _concatenate(parts: list[Stats]) -> Stats:
    """Join the row blocks of one call along R."""
    joined = {}
    for name in Stats._fields:
        tensors = [getattr(stats, name) for stats in parts]
        joined[name] = None if tensors[0] is None else torch.cat(tensors, 2)
    return Stats(**joined)
