"""The fast path without a fused kernel: plain torch on any device, O(rows x Lk) memory, no loop at decode.

Rows that no edit changes go through `scaled_dot_product_attention`. Edited rows are computed in blocks whose
scores fit a fixed budget, so no float matrix is ever L x L. There, grouped queries share their keys through a
reshape, never a copy. Operations work in place where no gradient is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.kernels.policies import FoldedPolicy, coefficients_of, offers
from regaze.kernels.reference import (
    edit_scores,
    in_window,
    measure,
    received,
    row_mask,
    spread_out,
    visibility,
)
from regaze.kernels.spec import AttentionEdit, RowSelection, Stats, StatsRequest, UnmaskRect

#: Scores held at once, in elements: 64 MiB in fp32, on a CPU 4 MiB (the size of its caches).
#: A block never has fewer than one query row.
BLOCK_ELEMENTS = 1 << 24
CPU_BLOCK_ELEMENTS = 1 << 20

#: Scores of a single row, over batch and heads, below which launching an operation costs most.
SMALL_ELEMENTS = 1 << 11

#: Elements of the keys above which, on a CPU, matrix products outrun torch's attention for a single row.
LARGE_ELEMENTS = 1 << 18

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
    call = _Call(query, key, value, edit, mask, scaling, is_causal, softcap, sinks)
    out, stats = call.decode() if call.queries == 1 else call.prefill()
    if edit.head_gain is not None:
        gain = edit.head_gain if edit.head_gain.dim() == 3 else edit.head_gain[..., None]
        out = out.float() if out.dtype == torch.float16 else out  # a gain may leave the range of fp16
        out = out * gain[..., None].to(out.dtype)
    return out.to(query.dtype), stats


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
        self.softcap, self.sinks = softcap, sinks
        self.batch, self.heads, self.queries, _ = q.shape
        _, self.kv_heads, self.keys, _ = k.shape
        self._cache: tuple[Tensor, Tensor] | None = None
        self.is_causal = is_causal and mask is None and self.queries > 1
        self.sdpa_can_run = softcap is None and sinks is None  # torch's own kernels have neither
        selects = edit.rows is None or len(edit.rows.index) > 0
        self.changes_weights = edit.edits_mask or (edit.edits_rows and selects)

    def decode(self) -> tuple[Tensor, Stats | None]:
        """A single row: one block gives its output and its statistics."""
        block, request = None, self.edit.stats
        if self.changes_weights or not self.sdpa_can_run or self._products_are_faster():
            block = _Block(self)
            out = block.output(self.changes_weights)
        else:
            out = self.plain()
        return out, None if request is None else self.statistics(request, block)

    def prefill(self) -> tuple[Tensor, Stats | None]:
        """Plain attention with the changed rows in their place, and the statistics of the requested rows."""
        edit = self.edit
        stats = None if edit.stats is None else self.statistics(edit.stats)
        if not self.changes_weights:
            return self.plain(), stats
        index = edit.changed_rows
        if index is not None and len(index) == self.queries:
            index = None
        selected = not edit.edits_mask and (edit.rows is None or edit.rows.active is None)
        blocks = (_Block(self, part, selected) for part in self.parts(index))
        rows = torch.cat([block.output() for block in blocks], 2)
        return rows if index is None else self.plain().to(rows.dtype).index_copy(2, index, rows), stats

    def statistics(self, request: StatsRequest, row: _Block | None = None) -> Stats:
        """Statistics of the requested rows; `row` is a single row that is already computed."""
        rows, active = request.rows, None if request.rows is None else request.rows.active
        if row is None and self._masses_by_sdpa(request):
            return Stats(masses=self._masses(request))
        if self.queries == 1 and (rows is None or len(rows.index) == 1):
            return (row or _Block(self)).statistics(request, active)
        all_keys = request.full_rows or request.columns is not None
        parts = self.parts(None if rows is None else rows.index)
        actives = [None] * len(parts) if active is None else active.split(self.block_rows, 1)
        stats = [
            _Block(self, part, all_keys=all_keys).statistics(request, a)
            for part, a in zip(parts, actives, strict=True)
        ]
        return stats[0] if len(stats) == 1 else _concatenate(stats)

    def plain(self) -> Tensor:
        """[B, Hq, Lq, Dv] without the edit, by torch's own kernels where they can."""
        if not self.sdpa_can_run:
            blocks = (_Block(self, part) for part in self.parts(None))
            return torch.cat([block.output(edited=False) for block in blocks], 2)
        q, k, v, mask, causal = self.q, self.k, self.v, self.mask, self.is_causal
        if causal and self.queries != self.keys:  # torch aligns causal rows to the first key, we to the last
            mask, causal = self.causal(None), False
        shared = self.heads != self.kv_heads
        if shared and self.queries == 1 and (mask is None or mask.shape[1] == 1):
            # The single rows of the heads that share keys are as good as rows of one head.
            q, shared = q.reshape(self.batch, self.kv_heads, -1, q.shape[-1]), False
        elif shared and k.is_cuda and not _cuda_shares_keys(k, v, mask):
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
            shared = False
        out = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal, scale=self.scaling, enable_gqa=shared
        )
        if mask is not None and mask.is_floating_point():
            # A row of a dtype's minimum is as fully masked as one of -inf, but torch averages its values.
            empty = mask.amax(-1, keepdim=True) <= torch.finfo(mask.dtype).min / 2
            out = out.masked_fill(empty, 0.0)
        return out if out.shape[1] == self.heads else out.view(self.batch, self.heads, 1, -1)

    def _products_are_faster(self) -> bool:
        """Whether two products beat torch's kernel for a single row, in bfloat16 by several times."""
        fast = self.q.is_cpu and self.q.dtype in (torch.float32, torch.bfloat16)
        return fast and self.k.numel() >= LARGE_ELEMENTS

    def _masses_by_sdpa(self, request: StatsRequest) -> bool:
        """Whether only masses of one short row are requested: then the number of operations costs most."""
        size, mask = self.batch * self.heads * self.keys, self.mask
        return (
            self.queries == 1
            and self.q.is_cpu
            and size <= SMALL_ELEMENTS
            and self.q.dtype == torch.float32
            and self.sdpa_can_run
            and (mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1))
            and not self.edit.edits_mask
            and request.only_masses
            and request.channels is not None
            and request.channels.count <= self.q.shape[3]
        )

    def _masses(self, request: StatsRequest) -> Tensor:
        """Masses [B, Hq, 1, K] of a row as attention whose values are the channels' columns: one kernel."""
        dim, channels, cache = self.q.shape[3], request.channels, request.as_edit.backend_cache
        assert channels is not None
        values: Tensor | None = cache.get("values")  # [B or 1, 1, n, D], zeros beside the K columns
        if values is None or values.shape[2] < self.keys or values.shape[3] != dim:
            with torch.inference_mode(False):  # stored for later calls
                columns = channels.mixed(torch.eye(dim, channels.count))
                values = columns.upto(2 * self.keys).mT[:, None].contiguous()
            if not values.requires_grad:
                cache["values"] = values
        q = self.q.reshape(self.batch, self.kv_heads, -1, dim)
        values = values.narrow(2, 0, self.keys).expand(self.batch, self.kv_heads, -1, -1)
        out = F.scaled_dot_product_attention(q, self.k, values, self.mask, scale=self.scaling)
        return out.narrow(3, 0, channels.count).reshape(self.batch, self.heads, 1, -1)

    def cache(self) -> tuple[Tensor, Tensor]:
        """Keys [B Hkv, Lk, D] and values [B Hkv, Lk, Dv], views if the cache allows them.

        Those of fp16 are copied to fp32: scores, gains and weights may leave the range of fp16.
        """
        if self._cache is None:
            k, v = self.k.flatten(0, 1), self.v.flatten(0, 1)
            self._cache = (k.float(), v.float()) if k.dtype == torch.float16 else (k, v)
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
        self._plain: tuple[Tensor, Tensor] | None = None
        self._edited: tuple[Tensor, Tensor] | None = None

    def output(self, edited: bool = True) -> Tensor:
        """[B, Hq, R, Dv] with or without the edit, before the head gain."""
        call, v = self.call, self.call.cache()[1]
        weights = (self.edited() if edited else self.plain())[1]
        if weights.dtype != v.dtype:
            weights = weights.to(v.dtype)
        if self.keys != call.keys:
            v = v[:, : self.keys]
        return torch.bmm(weights.view(len(v), -1, self.keys), v).view(*weights.shape[:3], v.shape[-1])

    def statistics(self, request: StatsRequest, active: Tensor | None) -> Stats:
        scores, weights = self.edited() if request.edited else self.plain()
        return measure(weights, scores, request, active, self.call.sinks)

    def plain(self) -> tuple[Tensor, Tensor]:
        """Scores and weights [B, Hq, R, keys] without the edit."""
        if self._plain is None:
            in_place = not self.call.edit.edits_scores  # an edit of scores still needs these
            self._plain = _softmax(self.scores, self.hidden, self.call.sinks, in_place)
        return self._plain

    def edited(self) -> tuple[Tensor, Tensor]:
        """Scores and weights [B, Hq, R, keys] under the edit."""
        if self._edited is None:
            self._edited = self._edit() if self.call.edit.edits_rows else self.plain()
        return self._edited

    def _edit(self) -> tuple[Tensor, Tensor]:
        edit, selected = self.call.edit, self._selected()
        scores, weights = self._edited_softmax(selected) if edit.edits_scores else self.plain()
        final = weights
        if edit.policy is not None and edit.channels is not None:
            fold = _folded(edit, weights) if self.part is None and self.call.sinks is None else None
            if fold is not None:
                final = fold(weights)
            else:
                coefficients = coefficients_of(edit.policy, edit.channels.masses(weights))
                final = weights * edit.channels.per_key(coefficients, self.keys)
        if edit.value_gain is not None:
            final = final * edit.columns("value_gain", self.keys)[:, :, None].to(final.dtype)
        if edit.spread is not None:
            final = spread_out(self.plain()[1], final, edit.columns("spread", self.keys))
        if final is not weights and selected is not None:
            final = torch.where(selected, final, weights)
        return scores, final

    def _edited_softmax(self, selected: Tensor | None) -> tuple[Tensor, Tensor]:
        edit, hidden = self.call.edit, self.hidden
        scores = edit_scores(self.scores, edit)
        if selected is not None:
            scores = torch.where(selected, scores, self.scores)
        if edit.bias is not None:  # a key with bias -inf is hidden like a masked one
            removed = edit.columns("bias", self.keys)[:, :, None] == -torch.inf
            removed = removed if selected is None else removed & selected
            hidden = removed if hidden is None else hidden | removed
        return _softmax(scores, hidden, self.call.sinks, in_place=True)

    def _scores(self, additive: Tensor | None) -> Tensor:
        """[B, Hq, R, keys], fp32 or fp64."""
        call, keys = self.call, self.call.cache()[0]
        if self.keys != call.keys:
            keys = keys[:, : self.keys]
        # The query group joins the rows: a group shares its keys.
        rows = _take_rows(call.q, self.part, 2).reshape(len(keys), -1, keys.shape[-1]).to(keys.dtype)
        scores = _product(rows, keys, call.scaling).view(call.batch, call.heads, -1, self.keys)
        if scores.dtype != torch.float64:
            scores = scores.float()
        if call.softcap is not None:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        return scores if additive is None else scores + additive.to(scores.dtype)

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


def _cuda_shares_keys(k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether CUDA has a fused kernel in which heads share keys; the fallback would be an L x L matrix."""
    return mask is None and k.shape[-1] == v.shape[-1] and k.dtype in (torch.float16, torch.bfloat16)


def _take_rows(x: Tensor, part: Part, dim: int) -> Tensor:
    """The rows of a block."""
    if part is None:
        return x
    if isinstance(part, slice):
        return x.narrow(dim, part.start, part.stop - part.start)
    return x.index_select(dim, part)


def _product(rows: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """rows [N, M, D] by keys [N, Lk, D], scaled: [N, M, Lk]."""
    zero = _zero(rows.dtype, rows.device)
    if rows.shape[1] <= 4 and keys.numel() >= LARGE_ELEMENTS and keys.dtype == torch.float32 and keys.is_cpu:
        # For few rows MKL reads keys that no cache holds up to three times as fast when they come first.
        return torch.baddbmm(zero, keys, rows.mT, beta=0, alpha=scaling).mT.contiguous()
    return torch.baddbmm(zero, rows, keys.mT, beta=0, alpha=scaling)


@lru_cache
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant that `baddbmm` adds with factor 0."""
    with torch.inference_mode(False):  # it outlives the block that needs it first
        return torch.zeros((), dtype=dtype, device=device)


def _softmax(
    scores: Tensor, hidden: Tensor | None, sinks: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor]:
    """Masked scores and their softmax, in which hidden keys, and so fully masked rows, are zeros.

    With `in_place`, the given scores are overwritten where no gradient is needed.
    """
    if hidden is not None:
        write = in_place and not scores.requires_grad
        scores = scores.masked_fill_(hidden, -torch.inf) if write else scores.masked_fill(hidden, -torch.inf)
    weights = torch.softmax(scores, -1)
    if hidden is not None:
        # This replaces the NaN of a fully masked row, the lines above that of its gradient.
        weights = (
            weights.masked_fill(hidden, 0.0) if weights.requires_grad else weights.masked_fill_(hidden, 0.0)
        )
    if sinks is not None:
        # The share of the keys beside the sink: Z / (Z + e^sink), with Z their own denominator.
        # Z is 0 in a fully masked row, and so may e^sink be: the finite minimum keeps 0 / 0 out.
        sink, lowest = sinks.to(scores.dtype)[:, None, None], torch.finfo(scores.dtype).min
        total = torch.logsumexp(scores, -1, keepdim=True).clamp_min(lowest)
        weights = weights * torch.sigmoid(total - sink)
    return scores, weights


def _folded(edit: AttentionEdit, weights: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The policy of an edit multiplied into its channels, stored with the edit; None where it cannot be."""
    policy, channels = edit.policy, edit.channels
    if policy is None or channels is None or not offers(policy, "fold"):
        return None
    if weights.dtype != torch.float32 or weights.requires_grad:
        return None
    if "fold" not in edit.backend_cache:
        with torch.inference_mode(False):  # stored with the edit, for later calls
            edit.backend_cache["fold"] = cast(FoldedPolicy, policy).fold(channels)
    fold: Callable[[Tensor], Tensor] | None = edit.backend_cache["fold"]
    return fold


def _concatenate(parts: list[Stats]) -> Stats:
    """Join the row blocks of one call along R."""
    joined = {}
    for name in Stats._fields:
        tensors = [getattr(stats, name) for stats in parts]
        joined[name] = None if tensors[0] is None else torch.cat(tensors, 2)
    return Stats(**joined)
