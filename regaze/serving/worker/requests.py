"""`EditedRequest`: one request with methods, from the first rows of its prompt to its last token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from operator import is_
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.caching import cached_property
from regaze.errors import InputError
from regaze.kernels import AttentionEdit, Stats
from regaze.serving.common.contexts import ServedContext, combines, has_second
from regaze.serving.worker.acts import Act, LayerCall, Rows
from regaze.serving.worker.chunks import chunk
from regaze.serving.worker.heads import Heads
from regaze.serving.worker.row_values import RowValues
from regaze.toolkit.model.callback import Callback, keeps_edits, overrides
from regaze.toolkit.model.layer_plan import plan_layer

#: What is done in a layer with a piece of the prompt (its first row, and the one behind it) or with a row of
#: the answer (None).
Acts = dict[tuple[int, tuple[int, int] | None], Act | None]
#: Of the edits of one request that are kept for the case that its rows run again.
MOST_BYTES = 2**28


class Planned(NamedTuple):
    """What is done in a layer with a piece of the prompt, or with a row of the answer (None)."""

    piece: tuple[int, int] | None
    edits: tuple[AttentionEdit | None, ...]
    act: Act | None

    def is_about(self, piece: tuple[int, int] | None, edits: Sequence[AttentionEdit | None]) -> bool:
        return self.piece == piece and all(map(is_, self.edits, edits))


class EditedRequest:
    """What the methods of one request do and learn, as `ModelHook` and its parts do it under transformers.

    A forward has rows of many requests, and rows of a prompt may come in several forwards: edits are cut to
    the rows at hand, and statistics handed over when the last row has run. A request whose keys the engine
    has given away runs again, its answer so far behind its prompt; its rows are then edited as they were.

    Attributes:
        context: the same object that methods get under transformers, of one sample.
        callbacks: in the order in which they act, recordings last.
        prompt_length: number of tokens of the prompt. done: of tokens whose rows have run.
        name: of the request inside of the engine.
        heads: of this process, where several share them; None: all.
        acts: what was done for other requests with these methods and tokens, which this one adds to.
        is_prepared: the context is that of another such request (`follows_from_tokens`).
        failed: one of its methods raised an error: nothing is done for it any more, and the engine ends it.
        group: name of the request whose prompt this is a context of. combining: callbacks that change logits.
        capturing: those that read hidden states of every forward. reading: those that read a number of each
            row of the prompt. reads_hidden: hidden states of some rows are read.
    """

    def __init__(
        self,
        callbacks: tuple[Callback, ...],
        context: ServedContext,
        name: str = "",
        heads: Heads | None = None,
        acts: Acts | None = None,
        is_prepared: bool = False,
    ):
        self.callbacks, self.context, self.heads = callbacks, context, heads
        self.name, self.group, self.failed = name, name, False
        self.combining = [callback for callback in callbacks if combines(callback)]
        self.prompt_length, self.done = context.prompt_length, 0
        self.needs_hidden = any(callback.needs_hidden_states for callback in callbacks)
        reading = [callback for callback in callbacks if callback.needs_hidden_states]
        self.reading = [callback for callback in reading if overrides(callback, "row_value")]
        self._reads_all = len(self.reading) < len(reading)
        self._read: dict[tuple[int, int], list[Tensor | None]] = {}  # by layer and the first row
        self._keeps = all(keeps_edits(callback) for callback in callbacks)
        self._taken: dict[tuple[int, int], tuple[AttentionEdit | None, ...]] = {}  # by layer and step
        self._taken_bytes = 0
        self._acts: dict[int, Planned] = {}
        self._newest: Planned | None = None
        self._hidden: dict[int, Tensor] = {}
        self._parts: dict[int, list[tuple[Callback, Stats]]] = {}  # of prompts, by layer
        self.capturing = [] if is_prepared else [each for each in callbacks if self._captures(each)]
        self.reads_hidden = self.needs_hidden or bool(self.capturing)
        self._fixed = acts if acts is not None and self.follows_from_tokens else {}

    def _captures(self, callback: Callback) -> bool:
        """Prepare a callback; whether it wants hidden states of every forward."""
        before = self.context.captured_layers
        callback.on_generate()
        callback.prepare(self.context)
        return self.context.captured_layers != before

    @property
    def edits_by_hidden(self) -> bool:
        """Whether its edits depend on hidden states of every forward, so that a prompt runs in one."""
        return any(overrides(callback, "edit") for callback in self.capturing)

    @cached_property
    def follows_from_tokens(self) -> bool:
        """Whether all that is done follows from methods and tokens, so that it is the same for others."""
        return self._keeps and not self.reads_hidden and not any(map(_learns, self.callbacks))

    @property
    def combines(self) -> bool:
        """Whether its logits are more than those of its own rows."""
        return bool(self.combining) or self.context.has_branches

    # A forward begins ---------------------------------------------------------------------------------

    def rows(self, row: int, start: int, first: int, stop: int) -> Iterator[Rows]:
        """The rows first..stop of the sequence, which are `start` and later ones of the forward."""
        at = first
        while at < stop:
            end, step = at + 1, at - self.prompt_length + 1
            if at < self.prompt_length:
                bounds = (self.prompt_length, stop, self.done if self.done > at else stop)
                end, step = min(bounds), 0
            rows = Rows(self, row, start + at - first, at, end, step, at < self.done)
            if not rows.again:
                self._begin(rows)
            yield rows
            at = end

    def _begin(self, rows: Rows) -> None:
        context, begins = self.context, rows.step > 0 or self.done == 0
        context.turn_begins = self.done == 0
        self._enter(rows)
        self.done = rows.stop
        if begins:
            for callback in self.callbacks:
                callback.on_step(context, None)

    def _enter(self, rows: Rows) -> None:
        """Tell methods where these rows are; pieces of a prompt are parts of one forward to them."""
        self.context.step = rows.step
        self.context.cache_length, self.context.fed = (
            (rows.first, 1) if rows.step else (0, self.prompt_length)
        )

    def show_hidden(self, layer: int, rows: Rows, hidden: Tensor) -> None:
        """`hidden` [R, D] of rows of the prompt enters `layer`; nobody writes to it any more."""
        if self.reading:
            self._read[layer, rows.first] = [
                each.row_value(layer, hidden, self.context) for each in self.reading
            ]
        if rows.again or not self._reads_all:
            return
        if len(hidden) == self.prompt_length:
            self._hidden[layer] = hidden
            return
        if layer not in self._hidden:
            self._hidden[layer] = hidden.new_zeros(self.prompt_length, hidden.shape[-1])
        self._hidden[layer][rows.first : rows.stop] = hidden

    def capture(self, layer: int, hidden: Tensor) -> None:
        """`hidden` [R, D] of these rows is about to enter `layer`, for `context.captured_hidden`."""
        self.context.store_captured(layer, (hidden if self.edits_by_hidden else hidden[-1:]).clone()[None])

    # A layer ------------------------------------------------------------------------------------------

    def keep_values(self, call: LayerCall, rows: Rows, slots: Tensor, kept: RowValues) -> None:
        """Put what is read of these rows of the prompt beside their keys, which lie in `slots` [R]."""
        for number, values in enumerate(self._read.pop((call.layer, rows.first))):
            if values is not None:
                kept.keep((call.layer, number), slots, values, len(call.keys) * call.keys.shape[2])

    def take_values(self, call: LayerCall, rows: Rows, kept: RowValues) -> None:
        """Give methods what is read of all rows of the prompt so far, those that did not run here, too."""
        places = {id(each): (call.layer, number) for number, each in enumerate(self.reading)}
        places = {who: place for who, place in places.items() if place in kept}
        if places:
            slots, rest = call.slots_of(rows), self.prompt_length - rows.stop
            values = {who: F.pad(kept.of(place, slots), (0, rest))[None] for who, place in places.items()}
            self.context.set_row_values({(who, call.layer): each for who, each in values.items()})

    def act(self, layer: int, rows: Rows, device: torch.device) -> Act | None:
        """What is done with these rows in a layer; None: nothing."""
        piece = None if rows.step else (rows.first, rows.stop)
        if not (self.follows_from_tokens or (rows.step and self._keeps and not rows.again)):
            return self._act(layer, rows, piece, device)
        if (layer, piece) not in self._fixed:
            self._fixed[layer, piece] = self._act(layer, rows, piece, device)
        return self._fixed[layer, piece]

    def _act(self, layer: int, rows: Rows, piece: tuple[int, int] | None, device: torch.device) -> Act | None:
        if rows.again and not self.follows_from_tokens:
            edits = self._again(layer, rows.step)
        else:
            self._enter(rows)
            edits = self._edits(layer, rows, device)
        for known in (self._acts.get(layer), self._newest):  # layers often have the edits of the one before
            if known is not None and known.is_about(piece, edits):
                self._acts[layer] = known
                return known.act
        cut = edits
        if piece is not None and piece != (0, self.prompt_length):
            cut = tuple(None if edit is None else chunk(edit, *piece) for edit in edits)
        if self.heads is not None:
            cut = tuple(None if edit is None else self.heads.of(edit) for edit in cut)
        plan = plan_layer(self.callbacks, cut, device)
        act = None if plan is None else Act(plan, rows.stop - rows.first)
        self._newest = self._acts[layer] = Planned(piece, edits, act)
        return act

    def _edits(self, layer: int, rows: Rows, device: torch.device) -> tuple[AttentionEdit | None, ...]:
        place = layer, min(rows.step, 1) if self._keeps else rows.step
        if rows.step and self._keeps and place in self._taken:
            return self._taken[place]
        context = self.context
        context.device = device
        if rows.step == 0 and layer in self._hidden:
            context.set_layer_input(layer, self._hidden[layer][None])
        edits = tuple(callback.edit(layer, rows.step, context) for callback in self.callbacks)
        context.clear_layer_input()
        if rows.step == 0 and rows.ends_prompt:
            self._hidden.pop(layer, None)
        if any(edit is not None for edit in edits) or self._keeps:
            self._remember(place, edits)
        return edits

    def _remember(self, place: tuple[int, int], edits: tuple[AttentionEdit | None, ...]) -> None:
        """Keep the edits of rows that may run again, as long as they are not too many."""
        if not self._keeps:
            self._taken_bytes += sum(_size(edit) for edit in edits if edit is not None)
        if self._taken_bytes > MOST_BYTES:
            self._taken = {}
        else:
            self._taken[place] = edits

    def _again(self, layer: int, step: int) -> tuple[AttentionEdit | None, ...]:
        """The edits of rows that ran before, without what was measured then."""
        if self._taken_bytes > MOST_BYTES:
            raise InputError(
                "the engine gave this request's keys away, and its edits, each step's another, were too "
                "many to keep: give the engine a larger cache, or ask for shorter answers"
            )
        place = layer, min(step, 1) if self._keeps else step
        edits = self._taken.get(place, (None,) * len(self.callbacks))
        return tuple(None if edit is None else edit.without_stats for edit in edits)

    # Statistics ---------------------------------------------------------------------------------------

    def deliver(self, layer: int, rows: Rows, owner: Callback, stats: Stats) -> None:
        """What was measured for a callback in these rows of a layer, on the heads of this process."""
        if self.heads is not None:
            stats = self.heads.gathered(stats)
        if rows.step:
            owner.on_stats(layer, stats, self.context)
        else:
            self._parts.setdefault(layer, []).append((owner, stats))

    def leave(self, layer: int, rows: Rows) -> None:
        """A layer has run with the rows that end the prompt: hand over what was measured in it."""
        if rows.again or layer not in self._parts:
            return
        parts = self._parts.pop(layer)
        for callback in self.callbacks:
            own = [stats for owner, stats in parts if owner is callback]
            if own:
                callback.on_stats(layer, joined(own), self.context)


def _learns(callback: Callback) -> bool:
    """Whether what a callback does may follow from more than the tokens of its prompt."""
    measures = overrides(callback, "on_stats", "on_step", "on_generate", "on_chosen")
    return measures or callback.records or combines(callback) or has_second(callback)


def _size(edit: AttentionEdit) -> int:
    """Bytes of an edit's own tensors."""
    parts = (getattr(edit, each.name) for each in fields(edit))
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))


def joined(parts: list[Stats]) -> Stats:
    """Statistics of rows of a prompt that ran in several forwards, as if in one."""
    if len(parts) == 1:
        return parts[0]
    widest = max((part.slices.shape[-1] for part in parts if part.slices is not None), default=0)
    whole: list[Tensor | None] = []
    for name, tensors in zip(Stats._fields, zip(*parts, strict=True), strict=True):
        if tensors[0] is None:
            whole.append(None)
            continue
        if name == "slices":  # of all columns: earlier rows saw fewer
            tensors = tuple(F.pad(each, (0, widest - each.shape[-1])) for each in tensors)
        whole.append(torch.cat(tensors, 2))
    return Stats(*whole)
