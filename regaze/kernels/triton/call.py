"""One call of attention: its row lists, and the statistics of requested rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regaze.kernels.channels import Channels
from regaze.kernels.pages import Pages
from regaze.kernels.policies import MAX_CHANNELS, Policy, coefficients_of
from regaze.kernels.reference import measure
from regaze.kernels.spec import AttentionEdit, RowSelection, Stats, StatsRequest, make_contiguous
from regaze.kernels.triton.arguments import selected_rows, unmask_bits
from regaze.kernels.triton.block_mask import own_keys, with_block_map
from regaze.kernels.triton.row_list import RowList
from regaze.kernels.triton.row_stats import MassChannels, RowStats, row_stats
from regaze.kernels.triton.shared_results import remember
from regaze.kernels.triton.tiling import Tiling, architecture, padded, tiling
from regaze.kernels.triton.weight_slices import column_sums, row_slices

#: Weights held at once while edited rows are measured, in elements: 64 MiB. Never fewer than one query row.
BLOCK_ELEMENTS = 1 << 24


@dataclass(frozen=True, eq=False)
class Call:
    """The tensors and options of one call of `attend`; without a value, one of `attention_stats`."""

    query: Tensor
    key: Tensor
    value: Tensor | None
    edit: AttentionEdit
    mask: Tensor | None
    scaling: float
    is_causal: bool
    softcap: float | None
    sinks: Tensor | None
    pages: Pages | None = None  # of the caches that key and value then are

    def __post_init__(self) -> None:
        make_contiguous(self, "sinks")

    @property
    def num_queries(self) -> int:
        return self.query.shape[2]

    @property
    def causal(self) -> bool:
        return self.is_causal and self.mask is None

    @property
    def options(self) -> dict[str, Any]:
        """What every operator takes by name."""
        return {"scaling": self.scaling, "softcap": self.softcap, "causal": self.causal}

    def changed_rows(self) -> Tensor | None:
        """[R] int64 rows whose weights the edit changes; None: all."""
        if self.edit.edits_rows or self.edit.edits_mask:
            return self.edit.changed_rows
        return torch.empty(0, dtype=torch.int64, device=self.query.device)

    def row_list(
        self,
        index: Tensor | None,
        *,
        edited: bool,
        light: bool = False,
        mapped: bool = True,
        decoded: bool = False,
    ) -> RowList:
        """The rows `index` ([R] int64; None: all), under the edit or not.

        Unmask and windows count in both cases. A block map comes with it where one is needed, if `mapped`.
        Rows of plain attention without statistics are `light`. The split kernel (`decoded`) needs no map, and
        finds the keys of the rows themselves in the mask.
        """
        edit = self.edit
        columns = edited and (edit.edits_scores or edit.value_gain is not None)
        tiling = self._tiling(self.num_queries if index is None else len(index), light, columns)
        rows = RowList(self.query, self.key, self.value, index, mask=self.mask, tiling=tiling)
        if self.pages is not None:
            rows = rows._replace(block_table=self.pages.table, lengths=self.pages.lengths)
        if edit.unmask:
            row_bits, column_bits = self._unmask_bits()
            rows = rows._replace(row_bits=row_bits, column_bits=column_bits)
        if edit.windows is not None:
            own = None if decoded else self._own_keys()
            windows = edit.windows.span, self._sink_end(), own
            rows = rows._replace(span=windows[0], sink_end=windows[1], own_key=windows[2])
        rows = with_block_map(rows, self.causal) if mapped and not decoded else rows
        if not edited or not edit.edits_rows:
            return rows
        return rows._replace(
            selected=self._selected(index),
            score_slope=edit.score_slope,
            score_gain=edit.score_gain,
            head_score_gain=edit.head_score_gain,
            bias=edit.bias,
            value_gain=edit.value_gain,
        )

    def row_stats(
        self,
        rows: RowList,
        policy: Policy | None = None,
        request: StatsRequest | None = None,
        *,
        edited: bool = False,
    ) -> RowStats:
        """Statistics of the rows: coefficients of a policy for its channels, and what a request is about.

        Both together only where `measured_beside` says so. `edited`: the softmax has the sink of the edit.
        """
        sinks = self.sinks, self.edit.sink if edited else None
        channels = MassChannels.of(self.edit.channels if policy is not None else None)
        options: dict[str, Any] = dict(self.options)
        stats_channels = MassChannels()
        if request is not None:
            active = None if request.rows is None else request.rows.active
            options |= {"active": active, "entropy": request.entropy, "top1": request.top1}
            stats_channels = MassChannels.of(request.channels)
        if channels.num_channels + stats_channels.num_channels <= MAX_CHANNELS:
            return row_stats(rows, sinks, policy, channels, stats_channels, **options)
        stats = row_stats(rows, sinks, None, MassChannels(), MassChannels(), **options)
        if policy is not None:
            masses = self._many_masses(rows, sinks, channels)
            coefficients = coefficients_of(policy, masses).contiguous()
            return stats._replace(masses=masses, coefficients=coefficients)
        masses = self._many_masses(rows, sinks, stats_channels)
        active = options.get("active")
        return stats._replace(stats_masses=masses if active is None else masses * active[:, None, :, None])

    def _many_masses(
        self, rows: RowList, sinks: tuple[Tensor | None, Tensor | None], channels: MassChannels
    ) -> Tensor:
        """Masses [B, Hq, R, K] of any number of channels, at most `MAX_CHANNELS` in a pass."""
        parts = _channel_parts(channels, self.key.shape[2])
        none = MassChannels()
        stats = (row_stats(rows, sinks, None, none, part, **self.options) for part in parts)
        return torch.cat([each.stats_masses for each in stats], -1)

    def _tiling(self, rows: int, light: bool, columns: bool) -> Tiling:
        width = max(x.shape[3] for x in (self.query, self.value) if x is not None)
        size, where, masked = (
            self.query.element_size(),
            architecture(self.query.device),
            self.mask is not None,
        )
        return tiling(rows, padded(width), size, where, light=light, masked=masked, columns=columns)

    def _selected(self, index: Tensor | None) -> Tensor | None:
        """[B, R] bool: which of the rows the edit selects; None: all of them."""
        rows = self.edit.rows
        if rows is not None and rows.active is None and rows.index is index:
            return None
        selected = selected_rows(rows, self.num_queries)
        if selected is None:
            return None
        selected = selected if index is None else selected[:, index]
        return selected.expand(self.query.shape[0], -1).contiguous()

    def _unmask_bits(self) -> tuple[Tensor | None, Tensor | None]:
        unmask = self.edit.unmask
        tensors = [part for rect in unmask for part in (rect.rows, rect.columns)]
        return remember("unmask_bits", tensors, None, lambda: unmask_bits(unmask))

    def _sink_end(self) -> Tensor:
        """[B] int64: end of the first keys, which every window shows."""
        windows, batch = self.edit.windows, self.query.shape[0]
        assert windows is not None
        if windows.first is None:
            return windows.span.new_full((batch,), windows.sink)
        return windows.first + windows.sink

    def _own_keys(self) -> Tensor | None:
        """[B', H', Lq] int32: the key of each row; None where it follows from the number of the row."""
        mask = self.mask
        return None if mask is None else remember("own_keys", [mask], None, lambda: own_keys(mask))


def measure_rows(call: Call, request: StatsRequest, stats: RowStats | None = None) -> Stats:
    """The requested statistics, streamed over the keys; see row_stats.py, and weight_slices.py for slices.

    `stats` of these rows may have been computed beside the coefficients of a policy.
    """
    edit, selection = call.edit, request.rows
    index, active = (None, None) if selection is None else (selection.index, selection.active)
    edited = request.edited and edit.edits_rows
    needs_rows = stats is None or request.full_rows or request.columns is not None
    rows = call.row_list(index, edited=edited) if needs_rows else None
    if edited and edit.reweights:
        assert rows is not None
        return _measure_final(call, request, rows, active)
    slices = None
    if rows is not None:
        rows = rows._replace(value_gain=None)
        if stats is None:
            stats = call.row_stats(rows, None, request, edited=request.edited)
        if request.full_rows or request.columns is not None:
            slices = row_slices(
                rows, stats.shift, stats.total, request.columns, active=active, **call.options
            )
    assert stats is not None
    return Stats(
        masses=None if request.channels is None else stats.stats_masses,
        entropy=stats.entropy if request.entropy else None,
        top_weight=stats.top_weight if request.top1 else None,
        top_column=stats.top_column if request.top1 else None,
        lse=_reported_lse(stats, active) if request.lse else None,
        slices=slices,
    )


def measured_beside(edit: AttentionEdit, request: StatsRequest | None) -> bool:
    """Whether the pass that sums the masses of a policy can serve a request: same rows, same softmax."""
    if request is None or edit.policy is None or request.edited:
        return False
    if edit.edits_scores or edit.sink is not None:
        return False
    ours, theirs = MassChannels.of(edit.channels), MassChannels.of(request.channels)
    if ours.num_channels + theirs.num_channels > MAX_CHANNELS:
        return False
    same = (edit.rows is None) == (request.rows is None)
    return same and (edit.rows is None or request.rows is None or edit.rows.index is request.rows.index)


def sum_columns(
    call: Call,
    selection: RowSelection | None,
    row_weights: Tensor | None = None,
    largest: bool = False,
) -> Tensor:
    """What keys receive from rows (None: all), [B, Hq, Lk]: the sum, or the `largest`, in linear memory."""
    index, active = (None, None) if selection is None else (selection.index, selection.active)
    rows = call.row_list(index, edited=False)
    stats = call.row_stats(rows)
    if row_weights is not None:
        row_weights = row_weights.float().expand(call.query.shape[0], -1).contiguous()
    softmax = stats.shift, stats.total
    return column_sums(rows.tensors, rows.tiling, *softmax, active, row_weights, largest, **call.options)


def _measure_final(call: Call, request: StatsRequest, rows: RowList, active: Tensor | None) -> Stats:
    """Statistics of weights after policy and value gain, from a bounded number of rows in full at a time."""
    edit, channels = call.edit, call.edit.channels
    stats = call.row_stats(rows, edit.policy, edited=True)
    options: dict[str, Any] = dict(call.options)
    if channels is not None:
        options |= {"groups": channels.groups, "weights": channels.weights, "num_groups": channels.num_groups}
    index = rows.row_index
    if index is None:
        index = torch.arange(call.num_queries, device=call.query.device)
    batch, heads, count = rows.shape
    step = max(1, BLOCK_ELEMENTS // (batch * heads * call.key.shape[2]))
    blocks = []
    for start in range(0, max(1, count), step):
        part = slice(start, start + step)
        selected, live = (None if x is None else x[:, part].contiguous() for x in (rows.selected, active))
        block = rows._replace(row_index=index[part], selected=selected, order=None, counts=None)
        shift, total = (x[:, :, part].contiguous() for x in (stats.shift, stats.total))
        coefficients = None if channels is None else stats.coefficients[:, :, part].contiguous()
        weights = row_slices(block, shift, total, None, coefficients=coefficients, **options)
        blocks.append(measure(weights, weights, replace(request, lse=False), live))
    joined = Stats(
        *(None if parts[0] is None else torch.cat(parts, 2) for parts in zip(*blocks, strict=True))
    )
    return joined._replace(lse=_reported_lse(stats, active) if request.lse else None)


def _reported_lse(stats: RowStats, active: Tensor | None) -> Tensor:
    return stats.lse if active is None else stats.lse.masked_fill(~active[:, None], 0.0)


def _channel_parts(channels: MassChannels, keys: int) -> list[MassChannels]:
    """Channels as free weights, at most `MAX_CHANNELS` in a part."""
    whole = Channels(channels.groups, channels.num_groups, channels.weights)
    each = torch.eye(whole.count, device=whole.matrix.device)
    every = whole.per_key(each.expand(whole.batch, 1, -1, -1), keys)[:, 0].transpose(0, 1)
    return [MassChannels(weights=part) for part in every.split(MAX_CHANNELS)]
