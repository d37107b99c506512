"""One call of attention: its row lists as operands of the kernels, and the statistics of requested rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regaze.kernels.channels import Channels
from regaze.kernels.policies import MAX_CHANNELS, Policy, coefficients_of
from regaze.kernels.reference import measure
from regaze.kernels.spec import AttentionEdit, RowSelection, Stats, StatsRequest
from regaze.kernels.triton.block_mask import own_keys, remember, with_block_map
from regaze.kernels.triton.operands import Scoring, Tiling, padded, tiling
from regaze.kernels.triton.plan import chosen_rows, opening_bits
from regaze.kernels.triton.row_stats import RowSums, row_sums
from regaze.kernels.triton.weight_slices import column_sums, row_slices

#: Weights held at once while edited rows are measured, in elements: 64 MiB. Never fewer than one query row.
BLOCK_ELEMENTS = 1 << 24


@dataclass(frozen=True, eq=False)
class Call:
    """The tensors and options of one call of `attend`; without v, one of `attention_stats`."""

    q: Tensor
    k: Tensor
    v: Tensor | None
    edit: AttentionEdit
    mask: Tensor | None
    scaling: float
    is_causal: bool
    softcap: float | None
    sinks: Tensor | None

    @property
    def queries(self) -> int:
        return self.q.shape[2]

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
        return torch.empty(0, dtype=torch.int64, device=self.q.device)

    def scoring(
        self, index: Tensor | None, *, edited: bool, light: bool = False, mapped: bool = True
    ) -> Scoring:
        """Operands of the rows `index` ([R] int64; None: all), under the edit or not.

        Openings and windows count in both cases. A block map comes with it where one is needed, if `mapped`.
        Rows of plain attention without statistics are `light`.
        """
        edit = self.edit
        tile = self._tiling(self.queries if index is None else len(index), light)
        scoring = Scoring(self.q, self.k, self.v, index, mask=self.mask, tile=tile)
        if edit.unmask:
            row_bits, column_bits = self._opening_bits()
            scoring = scoring._replace(row_bits=row_bits, column_bits=column_bits)
        if edit.windows is not None:
            scoring = scoring._replace(span=edit.windows.span, early=self._early_keys(), own=self._own_keys())
        scoring = with_block_map(scoring, self.causal) if mapped else scoring
        if not edited or not edit.edits_rows:
            return scoring
        return scoring._replace(
            chosen=self._chosen(index),
            slope=edit.score_slope,
            gain=edit.score_gain,
            head_gain=edit.head_score_gain,
            bias=edit.bias,
            value_gain=edit.value_gain,
        )

    def coefficients(self, scoring: Scoring) -> Tensor | None:
        """[B, Hq, R, K] that the policy gives the rows of `scoring`; None without a policy."""
        if self.edit.policy is None:
            return None
        return self.sums(scoring, self.edit.channels, policy=self.edit.policy).coefficients

    def sums(
        self,
        scoring: Scoring,
        channels: Channels | None = None,
        *,
        active: Tensor | None = None,
        entropy: bool = False,
        top1: bool = False,
        policy: Policy | None = None,
    ) -> RowSums:
        """Sums of the rows of `scoring`, with the masses of any number of channels."""
        parts = [(None, None, 0)] if channels is None else _channel_parts(channels, self.k.shape[2])
        own_policy = policy if len(parts) == 1 else None
        wants = {"active": active, "policy": own_policy, **self.options}
        sums = row_sums(scoring, self.sinks, *parts[0], entropy=entropy, top1=top1, **wants)
        if len(parts) > 1:
            rest = [row_sums(scoring, self.sinks, *part, **wants).masses for part in parts[1:]]
            sums = sums._replace(masses=torch.cat([sums.masses, *rest], -1))
            if policy is not None:
                sums = sums._replace(coefficients=coefficients_of(policy, sums.masses).contiguous())
        return sums

    def _tiling(self, rows: int, light: bool) -> Tiling:
        width = max(x.shape[3] for x in (self.q, self.v) if x is not None)
        return tiling(rows, padded(width), self.q.element_size(), light, self.q.device)

    def _chosen(self, index: Tensor | None) -> Tensor | None:
        """[B, R] bool: which of the rows the edit selects; None: all of them."""
        rows = self.edit.rows
        if rows is not None and rows.active is None and rows.index is index:
            return None
        chosen = chosen_rows(rows, self.queries)
        if chosen is None:
            return None
        chosen = chosen if index is None else chosen[:, index]
        return chosen.expand(self.q.shape[0], -1).contiguous()

    def _opening_bits(self) -> tuple[Tensor | None, Tensor | None]:
        unmask = self.edit.unmask
        tensors = [part for opening in unmask for part in (opening.rows, opening.columns)]
        return remember("opening_bits", tensors, None, lambda: opening_bits(unmask))

    def _early_keys(self) -> Tensor:
        """[B] int64: end of the first keys, which every window shows."""
        windows, batch = self.edit.windows, self.q.shape[0]
        assert windows is not None
        if windows.first is None:
            return windows.span.new_full((batch,), windows.sink)
        return windows.first + windows.sink

    def _own_keys(self) -> Tensor | None:
        """[B', H', Lq] int32: the key of each row; None where it follows from the number of the row."""
        mask = self.mask
        return None if mask is None else remember("own_keys", [mask], None, lambda: own_keys(mask))


def measure_rows(call: Call, request: StatsRequest) -> Stats:
    """What `request` asks for, streamed over the keys. See the module `sums`, and `rows` for the slices."""
    rows, edit = request.rows, call.edit
    index, active = (None, None) if rows is None else (rows.index, rows.active)
    edited = request.edited and edit.edits_rows
    scoring = call.scoring(index, edited=edited)
    if edited and (edit.policy is not None or edit.value_gain is not None):
        return _measure_final(call, request, scoring, active)
    sums = call.sums(
        scoring._replace(value_gain=None),
        request.channels,
        active=active,
        entropy=request.entropy,
        top1=request.top1,
    )
    slices = None
    if request.full_rows or request.columns is not None:
        slices = row_slices(scoring, *sums[:2], request.columns, active=active, **call.options)
    return Stats(
        masses=None if request.channels is None else sums.masses,
        entropy=sums.entropy if request.entropy else None,
        top_weight=sums.top_weight if request.top1 else None,
        top_column=sums.top_column if request.top1 else None,
        lse=_reported_lse(sums, active) if request.lse else None,
        slices=slices,
    )


def sum_columns(call: Call, rows: RowSelection | None) -> Tensor:
    """Attention weights [B, Hq, Lk] that keys receive from `rows` (None: all) together, in linear memory."""
    index, active = (None, None) if rows is None else (rows.index, rows.active)
    scoring = call.scoring(index, edited=False)
    sums = call.sums(scoring)
    return column_sums(scoring.tensors, scoring.tile, sums.shift, sums.total, active, **call.options)


def _measure_final(call: Call, request: StatsRequest, scoring: Scoring, active: Tensor | None) -> Stats:
    """Statistics of weights after policy and value gain, from a bounded number of rows in full at a time."""
    edit, channels = call.edit, call.edit.channels
    sums = call.sums(scoring, channels, policy=edit.policy)
    factors: dict[str, Any] = dict(call.options)
    if channels is not None:
        factors |= {"groups": channels.groups, "weights": channels.weights, "num_groups": channels.num_groups}
    index = torch.arange(call.queries, device=call.q.device) if scoring.numbers is None else scoring.numbers
    batch, heads, count = scoring.sums_shape
    step = max(1, BLOCK_ELEMENTS // (batch * heads * call.k.shape[2]))
    blocks = []
    for start in range(0, max(1, count), step):
        part = slice(start, start + step)
        chosen, live = (None if x is None else x[:, part].contiguous() for x in (scoring.chosen, active))
        block = scoring._replace(numbers=index[part], chosen=chosen, order=None, counts=None)
        shift, total = (x[:, :, part].contiguous() for x in (sums.shift, sums.total))
        coefficients = None if channels is None else sums.coefficients[:, :, part].contiguous()
        weights = row_slices(block, shift, total, None, coefficients=coefficients, **factors)
        blocks.append(measure(weights, weights, replace(request, lse=False), live))
    joined = Stats(
        *(None if parts[0] is None else torch.cat(parts, 2) for parts in zip(*blocks, strict=True))
    )
    return joined._replace(lse=_reported_lse(sums, active) if request.lse else None)


def _reported_lse(sums: RowSums, active: Tensor | None) -> Tensor:
    return sums.lse if active is None else sums.lse.masked_fill(~active[:, None], 0.0)


def _channel_parts(channels: Channels, keys: int) -> list[tuple[Tensor | None, Tensor | None, int]]:
    """Groups, free weights and number of groups of channels, at most `MAX_CHANNELS` in a part."""
    if channels.count <= MAX_CHANNELS:
        return [(channels.groups, channels.weights, channels.num_groups)]
    each = torch.eye(channels.count, device=channels.matrix.device)
    every = channels.per_key(each.expand(channels.batch, 1, -1, -1), keys)[:, 0].transpose(0, 1)
    return [(None, part, 0) for part in every.split(MAX_CHANNELS)]
