"""Layers that have only some tokens of the prompt; edits and statistics keep the numbers of the prompt.

Tokens may leave the hidden states before a layer, and with them its cache. In a batch each sample may lose
others and more of them. The layers then have as many rows as the sample that keeps most; the others fill up
with tokens of their own that nobody sees.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.caching import cached_property
from regaze.errors import CompositionError
from regaze.kernels.channels import Channels
from regaze.kernels.head_source import HeadRule, HeadSource
from regaze.kernels.key_value_shift import KeyValueShift
from regaze.kernels.placement import Placeable, place
from regaze.kernels.spec import COLUMN_PARTS, AttentionEdit, RowSelection, Stats, StatsRequest, UnmaskRect


class LeavingTokens(NamedTuple):
    """Tokens of the prompt that leave it before a layer.

    Attributes:
        tokens: [B, L] bool, on any device. counts: how many of each sample, known to the host beforehand, so
            that it need not wait.
        among: [B, L] bool on the CPU, the tokens that were up for choice.
    """

    tokens: Tensor
    counts: tuple[int, ...]
    among: Tensor


@dataclass(frozen=True, eq=False)
class KeptTokens(Placeable):
    """The tokens of the prompt that some layers have.

    Attributes:
        columns: [B, n] int64, their places in the prompt, rising.
        hidden: [B, n] bool, those among them that are there to fill up and that nobody sees; None: none.
        length: L of the prompt.
        settled: all tokens of the prompt from this one on are there, in every sample.
    """

    columns: Tensor
    hidden: Tensor | None
    length: int
    settled: int

    @classmethod
    def without(
        cls, gone: Tensor, counts: tuple[int, ...], settled: int, before: KeptTokens | None
    ) -> KeptTokens:
        """What is left of `before` (None: the whole prompt) without some tokens.

        Args:
            gone: [B, L] bool, all that have left so far, and padding. counts: of the others in each sample.
        """
        batch, length = gone.shape
        columns = torch.arange(length, device=gone.device).expand(batch, -1)
        columns = columns if before is None else before.columns
        gone = gone.gather(1, columns)
        order = gone.int().argsort(dim=1, stable=True)[:, : max(1, *counts)].sort(1).values
        hidden = None if min(counts) == max(1, *counts) else gone.gather(1, order)
        return cls(columns.gather(1, order), hidden, length, settled)

    @property
    def count(self) -> int:
        """Number n of rows."""
        return self.columns.shape[1]

    @cached_property
    def held(self) -> Tensor:
        """[B, L] int64, the row of each token of the prompt; -1 for those that have none."""
        rows = torch.arange(self.count, device=self.columns.device).expand_as(self.columns)
        places = torch.full((len(rows), self.length), -1, device=rows.device)
        return places.scatter_(1, self.columns, rows)

    @cached_property
    def places(self) -> Tensor:
        """[B, L] int64, the row of each token of the prompt; -1 where it has left or nobody sees it."""
        if self.hidden is None:
            return self.held
        return self.held.masked_fill(self.hidden.gather(1, self.held.clamp_min(0)), -1)

    def reordered(self, rows: Tensor) -> KeptTokens:
        """For a batch of these rows of this one."""
        columns, hidden = (
            None if part is None else part.index_select(0, rows.to(part.device))
            for part in (self.columns, self.hidden)
        )
        assert columns is not None
        return KeptTokens(columns, hidden, self.length, self.settled)

    def select(self, tensor: Tensor, axis: int = 1) -> Tensor:
        """[B, ..., n, ...] of a tensor [B or 1, ..., L, ...]."""
        return _along(tensor, self.columns, axis)

    def select_behind(self, tensor: Tensor, axis: int) -> Tensor:
        """[..., B, n, ...] of a tensor [..., B or 1, L, ...], L at `axis`; also of one without a batch."""
        if axis == 0:
            return self.select(tensor[None], 1)
        return self.select(tensor.transpose(0, axis - 1), axis).transpose(0, axis - 1)

    def narrow(self, tensor: Tensor, before: KeptTokens | None) -> Tensor:
        """[B, n, ...] of a tensor [B, m, ...] with the tokens of `before`; None: those of the prompt."""
        if before is None:
            return self.select(tensor)
        return _along(tensor, before.held.gather(1, self.columns), 1)

    def expand(self, tensor: Tensor, axis: int = 1) -> Tensor:
        """[B, ..., L, ...] of a tensor [B, ..., n, ...]: 0 for tokens that have left or that nobody sees."""
        spread = _along(tensor, self.places.clamp_min(0), axis)
        return spread.masked_fill(_placed(self.places < 0, axis, tensor.dim()), 0)

    @cached_property
    def prompt(self) -> Numbering:
        """How the prompt's own forward numbers rows and columns."""
        return Numbering(self, True)

    @cached_property
    def answer(self) -> Numbering:
        """How later forwards do, whose rows are those of new tokens."""
        return Numbering(self, False)


class Numbering:
    """Edits, masks and statistics of layers with `KeptTokens`, from the prompt's numbers to theirs and back.

    Args:
        rows: whether the query rows are those of the kept tokens, too.
    """

    kept: KeptTokens
    rows: bool
    device: torch.device

    def __init__(self, kept: KeptTokens, rows: bool):
        self.kept, self.rows, self.device = kept, rows, kept.columns.device
        self._selections: weakref.WeakKeyDictionary[RowSelection, RowSelection] = weakref.WeakKeyDictionary()
        self._requests: weakref.WeakKeyDictionary[StatsRequest, StatsRequest] = weakref.WeakKeyDictionary()
        self._edits: weakref.WeakKeyDictionary[AttentionEdit, AttentionEdit] = weakref.WeakKeyDictionary()

    def mask(self, mask: Tensor | None, queries: int, keys: int) -> Tensor | None:
        """The mask of such a layer, [B, 1 or Hq, Lq, Lk], from that of the whole prompt; None: causal."""
        kept = self.kept
        if mask is None:
            if kept.hidden is None:
                return None
            seen = F.pad(~kept.hidden, (0, keys - kept.count), value=True)[:, None, None]
            own = torch.ones(queries, keys, dtype=torch.bool, device=seen.device)
            return seen & own.tril(keys - queries)
        if self.rows:
            mask = kept.select(mask, 2)
        mask = _along(mask, self._numbers(keys), 3)
        if kept.hidden is None:
            return mask
        hidden = F.pad(kept.hidden, (0, keys - kept.count))[:, None, None]
        return mask.masked_fill(hidden, False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)

    def edit(self, edit: AttentionEdit) -> AttentionEdit:
        """The edit for such a layer, on its device. The same edit gives the same object.

        Raises:
            CompositionError: windows count the keys between two tokens.
        """
        if edit not in self._edits:
            self._edits[edit] = self._renumbered(edit).to(self.device)
        return self._edits[edit]

    def request(self, request: StatsRequest) -> StatsRequest:
        """As `edit`, for what is requested."""
        if request not in self._requests:
            self._requests[request] = self._requested(request).to(self.device)
        return self._requests[request]

    def stats(self, stats: Stats, request: StatsRequest) -> Stats:
        """Statistics of such a layer as the request, made for the whole prompt, expects them."""
        kept, found = self.kept, stats._asdict()
        if (top := stats.top_column) is not None:
            own = kept.columns.gather(1, top.flatten(1).clamp_max(kept.count - 1)).view_as(top)
            found["top_column"] = torch.where(top < kept.count, own, top + kept.length - kept.count)
        if stats.slices is not None and request.full_rows:
            found["slices"] = self.expand_columns(stats.slices)
        selection = request.rows
        if not self.rows or (selection is not None and self._is_settled(selection)):
            return Stats(**found)
        selection = None if selection is None else selection.to(self.device)
        places = kept.places if selection is None else kept.places[:, selection.index]  # [B, R]
        missing = places < 0
        if selection is not None and selection.active is not None:
            missing = missing | ~selection.active
        for name, part in found.items():
            if part is not None:
                rows = _along(part, places.clamp_min(0), 2)
                found[name] = rows.masked_fill(_placed(missing, 2, part.dim()), 0)
        return Stats(**found)

    def weights(self, weights: Tensor) -> Tensor:
        """Attention weights [B, Hq, Lq, Lk] of such a layer with all rows and columns of the prompt."""
        weights = self.expand_columns(weights)
        return self.kept.expand(weights, 2) if self.rows else weights

    def expand_columns(self, weights: Tensor) -> Tensor:
        """[..., L + new] of weights [B, Hq, R, Lk], 0 for keys that have left."""
        batch, heads, rows, keys = weights.shape
        index = self._numbers(keys)[:, None, None].expand(batch, heads, rows, keys)
        length = max(self.kept.length, keys + self.kept.length - self.kept.count)
        return weights.new_zeros(batch, heads, rows, length).scatter_(3, index, weights)

    def _numbers(self, keys: int) -> Tensor:
        """[B, keys] int64, the number of each key: a token's in the prompt, or after it."""
        columns, length = self.kept.columns, self.kept.length
        new = torch.arange(length, length + max(0, keys - self.kept.count), device=columns.device)
        return torch.cat([columns[:, :keys], new.expand(len(columns), -1)], 1)

    def _renumbered(self, given: AttentionEdit) -> AttentionEdit:
        if given.windows is not None:
            raise CompositionError(
                "windows count how many keys lie between two tokens, and some have left these layers: a "
                "method that sets windows cannot act together with one that removes tokens"
            )
        edit, changes = given.to(self.device), dict[str, Any]()
        for name in COLUMN_PARTS:
            if (part := getattr(edit, name)) is not None:
                changes[name] = self._columns(part, 1.0 if name.endswith("gain") else 0.0)
        if edit.spread is not None:
            changes["spread"] = self._columns(edit.spread, False)
        if (gate := edit.score_gate) is not None:
            rows = self.kept.select(gate.rows) if self.rows and gate.rows is not None else gate.rows
            changes["score_gate"] = replace(gate, columns=self._seen_columns(gate.columns), rows=rows)
        if edit.channels is not None:
            changes["channels"] = self._channels(edit.channels)
        if edit.unmask:
            changes["unmask"] = tuple(map(self._rectangle, edit.unmask))
        changes["shifts"] = tuple(map(self._shift, given.shifts, edit.shifts))
        if self.rows and edit.sink is not None:
            changes["sink"] = self.kept.select(edit.sink, 2)
        if self.rows and edit.head_gain is not None and edit.head_gain.dim() == 3:
            changes["head_gain"] = self.kept.select(edit.head_gain, 2)
        if self.rows and (source := edit.head_source) is not None:
            rows = None if source.rows is None else self.kept.select(source.rows)
            rule = None if source.rule is None else _RuleOfPrompt(source.rule, self.kept)
            changes["head_source"] = HeadSource(source.index, rule, rows)
        # Whether selected rows have moved alike is asked of the host, where most selections are made.
        if given.rows is not None:
            changes["rows"] = self._selection(given.rows)
        if given.stats is not None:
            changes["stats"] = self.request(given.stats)
        return edit.replace(**changes)

    def _requested(self, given: StatsRequest) -> StatsRequest:
        request, kept = given.to(self.device), self.kept
        channels, columns = request.channels, request.columns
        if columns is not None:
            own = columns.clamp(0, kept.length - 1).expand(len(kept.columns), -1)
            places = kept.places.gather(1, own)
            places = torch.where(columns < kept.length, places, columns - kept.length + kept.count)
            columns = places.masked_fill(columns < 0, -1)
        rows = None if given.rows is None else self._selection(given.rows)
        channels = None if channels is None else self._channels(channels)
        return replace(request, rows=rows, channels=channels, columns=columns)

    def _columns(self, part: Tensor, neutral: float) -> Tensor:
        """Of a column tensor [B or 1, ..., m] those of the kept tokens, then those after the prompt."""
        length = self.kept.length
        part = F.pad(part, (0, max(0, length - part.shape[-1])), value=neutral)
        own = self.kept.select(part[..., :length], part.dim() - 1)
        return torch.cat([own, part[..., length:].expand(len(own), *part.shape[1:-1], -1)], -1)

    def _channels(self, channels: Channels) -> Channels:
        groups, weights = channels.groups, channels.weights
        if weights is not None:  # [C, B or 1, n]
            weights = self._columns(weights.transpose(0, 1), 0.0).transpose(0, 1)
        groups = None if groups is None else self._columns(groups, 0)
        return replace(channels, groups=groups, weights=weights)

    def _rectangle(self, rectangle: UnmaskRect) -> UnmaskRect:
        rows, columns = rectangle.rows, self._seen_columns(rectangle.columns)
        return UnmaskRect(self.kept.select(rows) if self.rows else rows, columns)

    def _shift(self, given: KeyValueShift, shift: KeyValueShift) -> KeyValueShift:
        rows = None if given.rows is None else self._selection(given.rows)
        return replace(shift, groups=self._columns(shift.groups, 0), rows=rows)

    def _seen_columns(self, columns: Tensor) -> Tensor:
        """As `_columns`, of [B or 1, m] bool, without tokens that are there to fill up."""
        columns, hidden = self._columns(columns, False), self.kept.hidden
        if hidden is None:
            return columns
        return columns & ~F.pad(hidden, (0, columns.shape[1] - hidden.shape[1]))

    def _is_settled(self, selection: RowSelection) -> bool:
        """Whether its rows are in the same places in every sample, as far as the host can tell."""
        index = selection.index
        return index.device.type == "cpu" and (not len(index) or int(index[0]) >= self.kept.settled)

    def _selection(self, selection: RowSelection) -> RowSelection:
        if not self.rows:
            return selection
        if selection not in self._selections:
            self._selections[selection] = self._moved(selection)
        return self._selections[selection]

    def _moved(self, selection: RowSelection) -> RowSelection:
        kept, index, active = self.kept, selection.index, selection.active
        if self._is_settled(selection):
            return RowSelection(index - (kept.length - kept.count), active)
        chosen = torch.zeros(len(kept.columns), kept.length, dtype=torch.bool, device=index.device)
        chosen[:, index] = True if active is None else active
        every = torch.arange(kept.count, device=self.device)
        return RowSelection(every, kept.select(place(chosen, self.device)))


@dataclass(frozen=True, eq=False)
class _RuleOfPrompt(Placeable):
    """A rule that is told of all tokens of the prompt; nobody sees those that have left."""

    rule: HeadRule
    kept: KeptTokens

    def __call__(self, received: Tensor, seen: Tensor) -> Tensor:
        seen = seen.expand(len(received), *seen.shape[1:])
        return self.rule(self.kept.expand(received, 2), self.kept.expand(seen, 2))


def _placed(flags: Tensor, axis: int, dims: int) -> Tensor:
    """Flags or places [B, m], as [B, 1, ..., m, ..., 1] with m at `axis`."""
    return flags.view(len(flags), *[1] * (axis - 1), flags.shape[1], *[1] * (dims - axis - 1))


def _along(tensor: Tensor, index: Tensor, axis: int) -> Tensor:
    """[B, ..., m, ...] of a tensor [B or 1, ..., L, ...]: at each sample's places [B, m] along an axis."""
    shape = list(tensor.shape)
    shape[0], shape[axis] = index.shape
    wide = tensor.expand(len(index), *tensor.shape[1:])
    return wide.gather(axis, _placed(index, axis, tensor.dim()).expand(shape))
