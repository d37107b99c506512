"""What a layer does with some rows of a request, and the shortest way to do it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from regaze.caching import cached_property
from regaze.kernels import AttentionEdit
from regaze.kernels.paged import compiled_tensors
from regaze.kernels.pages import Pages
from regaze.serving.worker.heads import meets
from regaze.serving.worker.stacking import kind
from regaze.toolkit.model.layer_plan import LayerPlan

if TYPE_CHECKING:
    from regaze.kernels.numba.launch import Program
    from regaze.kernels.numba.paged import PagedRows, PagedTensors


class Rows(NamedTuple):
    """Rows of one request in one forward that share an edit: a piece of its prompt, or one row of its answer.

    Attributes:
        request: whose, an `EditedRequest`. row: its number in the block table.
        start: the first of the rows among all of the forward. first, stop: their places in the sequence; they
            see `stop` keys.
        step: 0 for rows of the prompt, then 1, 2, ...
        again: they ran before, and the engine gave their keys away since (preemption).
    """

    request: Any
    row: int
    start: int
    first: int
    stop: int
    step: int
    again: bool

    @property
    def span(self) -> slice:
        """The rows among all of the forward."""
        return slice(self.start, self.start + self.stop - self.first)

    @property
    def ends_prompt(self) -> bool:
        return self.stop == self.request.prompt_length


@dataclass(frozen=True)
class LayerCall:
    """A call of one layer's attention, whose plain output is there already.

    Attributes:
        layer: its number. query: [T, Hq, D]. output: [T, Hq, Dv], to be written to.
        keys, values: pages [P, Hkv, page, D] and [P, Hkv, page, Dv], those of the rows included.
        table: [B, n] int32, the pages of each sequence.
        options: `scaling`, `softcap` and `sinks` of `attend`.
    """

    layer: int
    query: Tensor
    output: Tensor
    keys: Tensor
    values: Tensor
    table: Tensor
    options: dict[str, Any]

    def pages_of(self, rows: Sequence[Rows]) -> Pages:
        """Where the keys of these sequences are, up to their rows."""
        device, size = self.query.device, self.keys.shape[2]
        numbers = torch.tensor([one.row for one in rows], device=device)
        lengths = torch.tensor([one.stop for one in rows], device=device)
        return Pages(self.table[numbers, : -(-max(one.stop for one in rows) // size)], lengths)

    def slots_of(self, rows: Rows) -> Tensor:
        """[stop], where the keys of a sequence, up to these rows, are among all of the cache."""
        table, size = self.pages_of([rows]).table[0], self.keys.shape[2]
        return (table[:, None] * size + torch.arange(size, device=table.device)).flatten()[: rows.stop]

    @cached_property
    def compiled(self) -> PagedTensors | None:
        """For the compiled kernel; None: it does not run here."""
        return compiled_tensors(self.query, self.output, self.keys, self.values, self.table, **self.options)


class Part(NamedTuple):
    """Rows that the compiled kernel edits.

    Attributes:
        program: what is done to them. first, stop: which of the rows at hand.
        gains: only their heads' outputs are multiplied.
    """

    program: Program
    first: int
    stop: int
    gains: bool


@dataclass(eq=False)
class Act:
    """What is done with some rows of a request in a layer.

    What is worked out here serves every step with as many rows under the same plan.

    Attributes:
        plan: of the layer. count: number of the rows.
    """

    plan: LayerPlan
    count: int

    @property
    def _edit(self) -> AttentionEdit:
        return self.plan.edit.edit

    @cached_property
    def meets(self) -> bool:
        """Whether workers that share heads gather something while it is done."""
        return bool(self.plan.requests) or meets(self._edit)

    @cached_property
    def parts(self) -> tuple[Part, ...] | None:
        """The rows as the compiled kernel runs them; None: it does not."""
        from regaze.kernels.numba.launch import program_of

        edit, rows = self._edit, self._edit.rows
        ignores_rows = edit.head_gain is not None and (rows is not None or edit.head_gain.dim() == 3)
        if self.plan.requests or ignores_rows or (rows is not None and rows.active is not None):
            return None
        program = program_of(edit.of_all_rows)
        if program is None:
            return None
        runs = ((0, self.count),) if rows is None else _runs(rows.index.tolist())
        return tuple(Part(program, first, stop, self.gain is not None) for first, stop in runs)

    @cached_property
    def alone(self) -> tuple[Hashable, AttentionEdit] | None:
        """The edit of the last row, where it alone is edited and can run beside others, and its kind."""
        edit = self._edit
        if self.plan.requests:
            return None
        if self.count == 1:
            edit = edit.of_all_rows if _selects(edit, 0) else edit
        elif edit.rows is None or edit.head_gain is not None or edit.edits_mask or edit.sink is not None:
            return None
        elif _selects(edit, self.count - 1):
            edit = edit.of_all_rows
        else:
            return None
        which = kind(edit)
        return None if which is None else (which, edit)

    @cached_property
    def gain(self) -> Tensor | None:
        """[1, Hq] or [1, Hq, R], by which the output is multiplied, where that is all that is done."""
        return None if self.plan.requests else only_gain(self._edit)

    def compile(self, rows: Rows, compiled: PagedRows) -> bool:
        """Add the rows to those that the compiled kernel runs; False: it does not take them."""
        if self.parts is None or not compiled.takes(self.count, rows.stop):
            return False
        for part in self.parts:
            start, count = rows.start + part.first, part.stop - part.first
            if part.gains:
                compiled.gain(part.program, start, count)
            else:
                compiled.attend(part.program, start, count, rows.row, rows.first + part.first)
        return True

    def run(self, rows: Rows, call: LayerCall) -> None:
        """Do it with these rows alone, and measure what is requested."""
        if self.gain is not None:
            gain = self.gain[0]
            call.output[rows.span] *= gain[..., None] if gain.dim() == 1 else gain.mT[..., None]
            return
        plan, pages = self.plan, call.pages_of([rows])
        key, value = (pages.gather(cache)[:, :, : rows.stop] for cache in (call.keys, call.values))
        query = call.query[rows.span].transpose(0, 1)[None]
        options: dict[str, Any] = {"mask": None, "is_causal": True, **call.options}
        scaling, number = options.pop("scaling"), call.layer
        if not plan.neutral:
            out, stats = plan.edit.attend(query, key, value, scaling, 0, **options)
            call.output[rows.span] = out[0].transpose(0, 1)
            if stats is not None:
                rows.request.deliver(number, rows, plan.requests[0][0], stats)
        for which, edit in plan.passes() if plan.requests else ():
            stats = edit.statistics(query, key, scaling, 0, **options)
            rows.request.deliver(number, rows, plan.requests[which][0], stats)


class CompiledStep:
    """What a layer does with rows of a forward, of which the compiled kernel runs some.

    Attributes:
        rows: those. rest: the others.
    """

    def __init__(self, acts: Sequence[tuple[Rows, Act]], tensors: PagedTensors):
        from regaze.kernels.numba.paged import PagedRows

        self._acts, self._layout = acts, tensors.layout
        self.rows, self.rest = PagedRows(tensors.layout), list[tuple[Rows, Act]]()

    def serves(self, acts: Sequence[tuple[Rows, Act]], tensors: PagedTensors) -> bool:
        """Whether another layer of this forward does the same."""
        return self._layout == tensors.layout and self._acts == acts

    def add(self, rows: Rows, act: Act) -> None:
        if not act.compile(rows, self.rows):
            self.rest.append((rows, act))


def only_gain(edit: AttentionEdit) -> Tensor | None:
    """The head gain of an edit that does nothing else; None: it has none, or does more."""
    return edit.head_gain if edit.uses_own_weights and edit.score_gate is None else None


def _selects(edit: AttentionEdit, row: int) -> bool:
    """Whether an edit selects this row, and no other."""
    rows = edit.rows
    return (
        rows is not None and rows.index.tolist() == [row] and (rows.active is None or bool(rows.active.all()))
    )


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first of each run of consecutive numbers, and the one behind it."""
    breaks = [i for i, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1]
    for begin, end in pairwise([0, *breaks, len(numbers)]):
        if begin < end:
            yield numbers[begin], numbers[end - 1] + 1
