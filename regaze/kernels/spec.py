"""The edit of one attention layer, as data.

An `AttentionEdit` is a frozen bundle of tensors. It names query rows and key columns, never a model: the same
edit runs on the reference, on the torch path and in a fused kernel. The order of its parts is fixed:

    key-value shifts -> head source -> mask (+ unmask, then windows) -> score map -> column bias
    -> softmax (with sinks) -> channel coefficients -> value gain -> head gain, score gate

Column tensors describe the first n keys. Keys after them (those generated later) are left alone: bias 0,
slope 0, gain 1, group 0, weight 0. One edit built at prefill therefore serves every decode step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regaze.caching import cached_property
from regaze.errors import BadParameterError, ShapeError
from regaze.kernels.channels import Channels, PaddedColumns, describe
from regaze.kernels.head_source import HeadSource
from regaze.kernels.key_value_shift import KeyValueShift
from regaze.kernels.placement import Placeable
from regaze.kernels.policies import Policy
from regaze.kernels.rows import RowSelection as RowSelection
from regaze.kernels.rows import make_contiguous as make_contiguous
from regaze.kernels.score_gate import ScoreGate


@dataclass(frozen=True, eq=False)
class StatsRequest(Placeable):
    """Which statistics of the softmax to compute, for which rows.

    Attributes:
        rows: query rows to report on; None: all.
        channels: report masses of these channels.
        entropy, top1, lse: report the row's entropy in nats, strongest column, log-sum-exp of scores.
        columns: [B or 1, n] int64 key columns whose weights to keep (row slices); -1 where there are fewer.
        full_rows: keep the weights of all columns instead.
        edited: report on the edited row instead of the unedited one.
    """

    rows: RowSelection | None = None
    channels: Channels | None = None
    entropy: bool = False
    top1: bool = False
    lse: bool = False
    columns: Tensor | None = None
    full_rows: bool = False
    edited: bool = False

    def __post_init__(self) -> None:
        columns = self.columns
        if columns is not None and (columns.dim() != 2 or columns.dtype != torch.int64):
            raise ShapeError(f"StatsRequest.columns must be [B or 1, n] int64, got {describe(columns)}")
        if columns is not None and self.full_rows:
            raise BadParameterError("StatsRequest takes `columns` or `full_rows`, not both")

    @cached_property
    def only_masses(self) -> bool:
        """Whether masses of all rows are the only statistics requested."""
        others = (self.entropy, self.top1, self.lse, self.full_rows, self.columns is not None)
        return self.channels is not None and self.rows is None and not any(others)

    def is_last_row(self, queries: int) -> bool:
        """Whether it is about the last of several query rows alone, in all samples.

        Not on an accelerator, where reading the number of a row would wait, and not while a graph is traced.
        """
        rows = self.rows
        if rows is None or queries == 1 or torch.compiler.is_compiling():
            return False
        if rows.active is not None or len(rows.index) != 1 or not rows.index.is_cpu:
            return False
        return type(rows.index) is torch.Tensor and int(rows.index) == queries - 1  # a fake one has no values

    def about(self, rows: RowSelection) -> StatsRequest:
        """The same of these rows alone. What is worked out for `self` serves single rows of it, too."""
        made = replace(self, rows=rows)
        vars(made)["of_all_rows"] = self
        return made

    @cached_property
    def of_all_rows(self) -> StatsRequest:
        """The same of every row of a call."""
        return replace(self, rows=None)

    @cached_property
    def as_edit(self) -> AttentionEdit:
        """The edit that only records."""
        return AttentionEdit(stats=self)


class Stats(NamedTuple):
    """Statistics from `attend`, fp32, for the R rows of a request; 0 where a row is not active in a sample.

    Attributes:
        masses: [B, Hq, R, K] attention mass of each channel.
        entropy: [B, Hq, R] in nats; 0 for a fully masked row.
        top_weight, top_column: [B, Hq, R] largest weight and its key column (the first of equals).
        lse: [B, Hq, R] log-sum-exp of the scores and sinks; -inf for a fully masked row without these.
        slices: [B, Hq, R, n or Lk] weights of the requested columns.
        received: [B, Hkv or Hq, Lk] what each key receives from the rows; see `attention_stats`.
    """

    masses: Tensor | None = None
    entropy: Tensor | None = None
    top_weight: Tensor | None = None
    top_column: Tensor | None = None
    lse: Tensor | None = None
    slices: Tensor | None = None
    received: Tensor | None = None


@dataclass(frozen=True, eq=False)
class UnmaskRect(Placeable):
    """A rectangle opened in the mask: each row of `rows` may look at each column of `columns`, causal or not.

    Attributes:
        rows: [B or 1, Lq] bool.
        columns: [B or 1, n] bool (padded keys must not be among them).
    """

    rows: Tensor
    columns: Tensor

    def __post_init__(self) -> None:
        for name, tensor in (("rows", self.rows), ("columns", self.columns)):
            if tensor.dim() != 2 or tensor.dtype != torch.bool:
                raise ShapeError(f"UnmaskRect.{name} must be [B or 1, Lq or n] bool, got {describe(tensor)}")


@dataclass(frozen=True, eq=False)
class Windows(Placeable):
    """A sliding window per head: a row sees its last `span` keys, its own included, and the first `sink`.

    A row's own key is the last one that the mask shows it; without a mask, row i sits at Lk - Lq + i.

    Attributes:
        span: [B or 1, Hq] int64, at least 1.
        sink: how many keys at the start stay visible to every row.
        first: [B] int64, the first key that is no padding; None: key 0.
    """

    span: Tensor
    sink: int = 0
    first: Tensor | None = None

    def __post_init__(self) -> None:
        if self.span.dim() != 2 or self.span.dtype != torch.int64:
            raise ShapeError(f"Windows.span must be [B or 1, Hq] int64, got {describe(self.span)}")
        if self.first is not None and (self.first.dim() != 1 or self.first.dtype != torch.int64):
            raise ShapeError(f"Windows.first must be [B] int64, got {describe(self.first)}")
        if self.sink < 0:
            raise BadParameterError(f"Windows.sink must not be negative, got {self.sink}")
        make_contiguous(self, "span", "first")


COLUMN_PARTS = ("score_slope", "head_mean_slope", "score_gain", "bias", "value_gain")
_VALUES = (*COLUMN_PARTS, "sink", "spread", "head_score_gain", "head_gain")


@dataclass(frozen=True, eq=False)
class AttentionEdit(Placeable):
    """One layer's edit; every default is neutral. Hq counts *query* heads; n <= Lk columns are named.

    Attributes:
        rows: which query rows the score map, bias, channels and value gain apply to; None: all.
        score_slope: [B or 1, Hq or 1, n], s <- s + slope * |s|.
        head_mean_slope: [B or 1, Hq or 1, n], s <- s + slope * mean over all query heads of |s| (after the
            slope); a head that cannot see a key counts with the score it would have.
        score_gain: [B or 1, Hq or 1, n], s <- s * gain (after the slopes).
        head_score_gain: [B or 1, Hq], multiplies every score of a head (0: it averages all visible keys).
        bias: [B or 1, Hq or 1, n] added to the scores; -inf removes a key.
        sink: [B or 1, Hq or 1, Lq], one more logit in the denominator of each row's softmax, beside those of
            the model; its weight is dropped, so that the row sums to less than 1. -inf: none. Like a head
            gain it has its own row dimension and ignores `rows`.
        channels, policy: masses of the channels after softmax -> coefficients, which give
            a'_j = a_j * sum_k coef_k u_k[j]. The channels need groups, so that every key is in at least one.
        value_gain: [B or 1, Hq or 1, n], columns scaled after the coefficients, not renormalised.
        spread: [B or 1, n] bool. What a row has come to put on these columns together is divided among them
            as plain attention divides it, and what it puts on all other columns likewise: the masses stay
            those of the edit, the choice of columns goes. Alone it changes nothing.
        head_gain: [B or 1, Hq] or [B or 1, Hq, Lq], multiplies a head's output (0 removes the head). It has
            its own row dimension and ignores `rows`.
        score_gate: heads whose raw scores on some columns are low are scaled. It has its own rows.
        unmask: rectangles opened in the mask.
        windows: keys that each head loses sight of, also where mask or unmask show them; like these
            it applies to every row.
        shifts: vectors added to keys and values before they enter the cache, each to what they were; with
            rows of their own. In a model later calls find them in the cache, and only keys that a call adds
            are shifted by it.
        head_source: whose scores each head has in the place of its own, in every row; a head keeps its
            values and its other edits.
        stats: what to record.
    """

    rows: RowSelection | None = None
    score_slope: Tensor | None = None
    head_mean_slope: Tensor | None = None
    score_gain: Tensor | None = None
    head_score_gain: Tensor | None = None
    bias: Tensor | None = None
    sink: Tensor | None = None
    channels: Channels | None = None
    policy: Policy | None = None
    value_gain: Tensor | None = None
    spread: Tensor | None = None
    head_gain: Tensor | None = None
    score_gate: ScoreGate | None = None
    unmask: tuple[UnmaskRect, ...] = ()
    windows: Windows | None = None
    shifts: tuple[KeyValueShift, ...] = ()
    head_source: HeadSource | None = None
    stats: StatsRequest | None = None
    # Nothing below changes what an edit means: padded columns, what a backend derived from the edit for later
    # calls, and the smallest Lk for which each query fitted.
    _columns: dict[str, PaddedColumns] = field(default_factory=dict, init=False, repr=False)
    backend_cache: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _fitted: dict[tuple[int, int, int], int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in COLUMN_PARTS:
            tensor = getattr(self, name)
            if tensor is not None and tensor.dim() != 3:
                raise ShapeError(f"{name} must be [B or 1, Hq or 1, n], got {describe(tensor)}")
        if self.sink is not None and (self.sink.dim() != 3 or not self.sink.is_floating_point()):
            raise ShapeError(f"sink must be [B or 1, Hq or 1, Lq] float, got {describe(self.sink)}")
        spread = self.spread
        if spread is not None and (spread.dim() != 2 or spread.dtype != torch.bool):
            raise ShapeError(f"spread must be [B or 1, n] bool, got {describe(spread)}")
        if self.head_gain is not None and self.head_gain.dim() not in (2, 3):
            raise ShapeError(
                f"head_gain must be [B or 1, Hq] or [B or 1, Hq, Lq], got {describe(self.head_gain)}"
            )
        if self.head_score_gain is not None and self.head_score_gain.dim() != 2:
            raise ShapeError(f"head_score_gain must be [B or 1, Hq], got {describe(self.head_score_gain)}")
        if self.policy is None and self.channels is None:
            return
        if self.policy is None or self.channels is None:
            raise BadParameterError("give `channels` and `policy` together (for masses alone use `stats`)")
        if self.channels.groups is None:
            raise BadParameterError("a policy needs channels with groups: it would drop keys that have none")
        if self.policy.channels != self.channels.count:
            raise BadParameterError(
                f"policy {type(self.policy).__name__} works on {self.policy.channels} channels, "
                f"but {self.channels.count} are given"
            )

    @cached_property
    def edits_scores(self) -> bool:
        """Whether the softmax sees other scores."""
        maps = (self.score_slope, self.head_mean_slope, self.score_gain, self.head_score_gain)
        parts = (*maps, self.bias)
        return any(part is not None for part in parts)

    @cached_property
    def edits_rows(self) -> bool:
        """Whether anything is changed that `rows` selects."""
        return self.edits_scores or self.policy is not None or self.value_gain is not None

    def head_mean(self, scores: Tensor) -> Tensor:
        """Mean of |s| over all query heads, [B, 1, R, Lk], of scores [B, Hq, R, Lk] (`head_mean_slope`)."""
        return scores.abs().mean(1, keepdim=True)

    @property
    def reweights(self) -> bool:
        """Whether weights are changed after the softmax."""
        return self.policy is not None or self.value_gain is not None

    @cached_property
    def selects_rows(self) -> bool:
        """Whether there are rows to change at all."""
        return self.rows is None or len(self.rows.index) > 0

    @property
    def edits_mask(self) -> bool:
        """Whether rows see other keys than the mask shows them."""
        return bool(self.unmask) or self.windows is not None

    @property
    def neutral(self) -> bool:
        """True when the layer's output is left alone (it may still be recorded)."""
        return self.uses_own_weights and self.head_gain is None and self.score_gate is None

    @property
    def uses_own_weights(self) -> bool:
        """Whether all attention weights are those of plain attention."""
        added = self.head_source is not None or self.sink is not None or bool(self.shifts)
        return not added and not self.edits_rows and not self.edits_mask

    @cached_property
    def has_outstanding(self) -> bool:
        """Whether the group of a key depends on its weight, for the policy or the request."""
        requested = None if self.stats is None else self.stats.channels
        return any(c is not None and c.outstanding is not None for c in (self.channels, requested))

    @cached_property
    def with_own_maps(self) -> AttentionEdit:
        """The same edit without `head_source`."""
        return self.replace(head_source=None)

    @cached_property
    def with_own_keys(self) -> AttentionEdit:
        """The same edit without `shifts`."""
        return self.replace(shifts=())

    @cached_property
    def without_score_gate(self) -> AttentionEdit:
        """The same edit without `score_gate`."""
        return self.replace(score_gate=None)

    def about(self, rows: RowSelection | None) -> AttentionEdit:
        """The same edit of these rows alone. What is worked out for `self` serves single rows of it, too."""
        made = replace(self, rows=rows)
        vars(made)["of_all_rows"] = self
        return made

    @cached_property
    def of_all_rows(self) -> AttentionEdit:
        """The same edit of every row of a call."""
        return self if self.rows is None else replace(self, rows=None)

    @cached_property
    def without_stats(self) -> AttentionEdit:
        """The same edit without its request."""
        return self.replace(stats=None)

    @cached_property
    def changed_rows(self) -> Tensor | None:
        """[R] int64 rows in which `rows`, unmask or windows change weights; None: all of them.

        With unmask it waits for the device, once for all layers that share the edit.
        """
        if self.windows is not None:
            return None
        selected = self.rows if self.edits_rows else None
        if not self.unmask or (self.edits_rows and selected is None):
            return None if selected is None else selected.index
        changed = torch.stack([rect.rows.any(0) for rect in self.unmask]).any(0)
        if selected is not None:
            changed[selected.index] = True
        return changed.nonzero().flatten()

    def columns(self, name: str, length: int) -> Tensor:
        """Column tensor `name` for `length` keys, neutral where the edit names no column."""
        if name not in self._columns:
            tensor = getattr(self, name)
            neutral = tensor.new_full((), 1.0 if name.endswith("gain") else 0.0)
            self._columns[name] = PaddedColumns(tensor, neutral)
        return self._columns[name].upto(length)

    def with_own_values(self) -> AttentionEdit:
        """The same edit with memory of its own for what `overwrite` writes to."""
        with torch.inference_mode(False):  # written to later, perhaps outside of inference mode
            own = {name: part.clone() for name in _VALUES if (part := getattr(self, name)) is not None}
            return self.replace(**own)

    def overwrite(self, other: AttentionEdit) -> bool:
        """Take the values of an edit that differs in maps, bias, sink, gains, spread; no address changes.

        False, and nothing is written, where it has other parts or other shapes.
        """
        changed = []
        for name in (part.name for part in fields(self) if part.init):
            mine, new = getattr(self, name), getattr(other, name)
            if mine is new or (isinstance(mine, tuple) and mine == new):
                continue
            if name not in _VALUES or mine is None or new is None or mine.requires_grad or new.requires_grad:
                return False
            if (mine.shape, mine.dtype, mine.device) != (new.shape, new.dtype, new.device):
                return False
            changed.append((name, mine, new))
        for name, mine, new in changed:
            mine.copy_(new)
            if name in self._columns:
                self._columns[name].refresh()
        return True

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        """Raise ShapeError unless the edit fits query [B, Hq, Lq, D] and key [B, Hkv, Lk, D] of this size."""
        shape = (batch, heads, queries)
        if shape in self._fitted and keys >= self._fitted[shape]:
            return

        def require(fits: bool, name: str, tensor: Tensor, want: str) -> None:
            if not fits:
                raise ShapeError(
                    f"{name} is {describe(tensor)}, but query is [B={batch}, Hq={heads}, Lq={queries}, D] "
                    f"and key has Lk={keys} keys: it must be {want}"
                )

        either = (1, batch)
        for name in COLUMN_PARTS:
            if (tensor := getattr(self, name)) is not None:
                b, h, n = tensor.shape
                fits = b in either and h in (1, heads) and n <= keys
                require(fits, name, tensor, "[B or 1, Hq or 1, n <= Lk]")
        gate = self.score_gate
        columns = (("spread", self.spread), ("ScoreGate.columns", None if gate is None else gate.columns))
        for name, named in columns:
            if named is not None:
                fits = named.shape[0] in either and named.shape[1] <= keys
                require(fits, name, named, "[B or 1, n <= Lk]")
        if gate is not None and gate.rows is not None:
            fits = gate.rows.shape[0] in either and gate.rows.shape[1] == queries
            require(fits, "ScoreGate.rows", gate.rows, "[B or 1, Lq]")
        if (sink := self.sink) is not None:
            fits = sink.shape[0] in either and sink.shape[1] in (1, heads) and sink.shape[2] == queries
            require(fits, "sink", sink, "[B or 1, Hq or 1, Lq]")
        if (gain := self.head_score_gain) is not None:
            require(
                gain.shape[0] in either and gain.shape[1] == heads, "head_score_gain", gain, "[B or 1, Hq]"
            )
        if (gain := self.head_gain) is not None:
            fits = gain.shape[0] in either and gain.shape[1] == heads and gain.shape[2:] in ((), (queries,))
            require(fits, "head_gain", gain, "[B or 1, Hq] or [B or 1, Hq, Lq]")
        for rect in self.unmask:
            rows, opened = rect.rows, rect.columns
            fits = rows.shape[0] in either and rows.shape[1] == queries
            require(fits, "UnmaskRect.rows", rows, "[B or 1, Lq]")
            fits = opened.shape[0] in either and opened.shape[1] <= keys
            require(fits, "UnmaskRect.columns", opened, "[B or 1, n <= Lk]")
        if (windows := self.windows) is not None:
            span, first = windows.span, windows.first
            require(span.shape[0] in either and span.shape[1] == heads, "Windows.span", span, "[B or 1, Hq]")
            if first is not None:
                require(first.shape[0] == batch, "Windows.first", first, "[B]")
        if (source := self.head_source) is not None:
            for name, part, size in (("index", source.index, heads), ("rows", source.rows, queries)):
                if part is not None:
                    fits = part.shape[0] in either and part.shape[1] == size
                    require(fits, f"HeadSource.{name}", part, f"[B or 1, {size}]")
        stats = self.stats or StatsRequest()
        shifts = (("shifts.rows", shift.rows) for shift in self.shifts)
        for name, selected in (("rows", self.rows), ("stats.rows", stats.rows), *shifts):
            if selected is not None:
                require(len(selected.index) <= queries, f"{name}.index", selected.index, "[R <= Lq]")
                if selected.active is not None:
                    require(selected.active.shape[0] == batch, f"{name}.active", selected.active, "[B, R]")
        for name, channels in (("channels", self.channels), ("stats.channels", stats.channels)):
            if channels is not None and not (channels.batch in either and channels.length <= keys):
                require(False, f"{name} (as [B, n, K])", channels.matrix, "[B or 1, n <= Lk, K]")
        if stats.columns is not None:
            require(stats.columns.shape[0] in either, "stats.columns", stats.columns, "[B or 1, n]")
        self._fitted[shape] = keys

    def replace(self, **changes: Any) -> AttentionEdit:
        """A copy with some parts changed."""
        return replace(self, **changes)
