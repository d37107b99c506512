"""`EngineEdits`: the edited requests of one model runner, and what a layer does with their rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from regaze.kernels import AttentionEdit, attend
from regaze.serving import records, wire
from regaze.serving.admission import acting
from regaze.serving.pages import Pages, row_mask
from regaze.serving.prompts import context_of, reader_of
from regaze.serving.release import KEY
from regaze.serving.requests import EditedRequest, Rows
from regaze.serving.stacking import Stacks, kind
from regaze.toolkit.model.plans import LayerPlan
from regaze.toolkit.prompts.prompt_reader import PromptReader


@dataclass(frozen=True)
class LayerCall:
    """A call of one layer's attention, whose plain output is there already.

    Attributes:
        layer: its number. query: [T, Hq, D]. output: [T, Hq, Dv], to be written to. pages: keys and values,
            those of the rows included. table: [B, n] int32, the pages of each sequence.
        options: `scaling`, `softcap` and `sinks` of `attend`.
    """

    layer: int
    query: Tensor
    output: Tensor
    pages: Pages
    table: Tensor
    options: dict[str, Any]


class EngineEdits:
    """What requests of an engine ask of its attention layers.

    Args:
        runner: vLLM's model runner, whose batch says which rows are whose.
    """

    def __init__(self, runner: Any):
        self._runner = runner
        self._requests: dict[str, EditedRequest | None] = {}
        self._planned: tuple[Any, Sequence[Rows]] = (None, ())
        self._stacks = Stacks()

    # A forward ----------------------------------------------------------------------------------------

    def rows(self, metadata: Any) -> Sequence[Rows]:
        """The rows of edited requests in the forward that has this attention metadata.

        Worked out in its first layer; all layers share the metadata.
        """
        if self._planned[0] is not metadata:
            self._planned = metadata, self._find_rows(metadata)
        return self._planned[1]

    def _find_rows(self, metadata: Any) -> list[Rows]:
        runner, found = self._runner, list[Rows]()
        live = {name: self._request(name) for name in runner.input_batch.req_ids}
        for gone in [name for name in self._requests if name not in runner.requests]:
            del self._requests[gone]
            records.end(gone, None)
        if not any(live.values()):
            return found
        starts, lengths = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
        for number, request in enumerate(live.values()):
            if request is None or number + 1 >= len(starts):
                continue
            start, count, length = starts[number], starts[number + 1] - starts[number], lengths[number]
            found += request.rows(number, start, length - count, length)
        return found

    def _request(self, name: str) -> EditedRequest | None:
        if name not in self._requests:
            state = self._runner.requests.get(name)
            self._requests[name] = None if state is None else self._begin(state)
        return self._requests[name]

    def _begin(self, state: Any) -> EditedRequest | None:
        """A request as admission left it."""
        params = state.sampling_params
        carried = None if params is None else (params.extra_args or {}).get(KEY)
        if not carried:
            return None
        methods, tokens = wire.unpacked(carried)
        config = self._runner.model_config.hf_text_config
        callbacks = acting(methods, config)
        if "record" in carried:
            whole, tokenizer = self._runner.model_config.hf_config, self._reader.tokenizer
            callbacks = (*callbacks, records.begin(state.req_id, carried["record"], whole, tokenizer))
        context = context_of(config, state.prompt_token_ids, tokens, callbacks, self._reader)
        return EditedRequest(callbacks, context)

    @cached_property
    def _reader(self) -> PromptReader:
        return reader_of(self._runner.model_config)

    def show_hidden(self, layer: int, stream: Callable[[], Tensor], metadata: Any) -> None:
        """The residual stream [T, D] is about to enter a layer; `stream` gives it."""
        reading = [rows for rows in self.rows(metadata) if rows.request.needs_hidden]
        for rows in reading:
            if rows.step == 0 and not rows.again:
                rows.request.show_hidden(layer, rows, stream()[rows.span])

    # A layer ------------------------------------------------------------------------------------------

    def edit(self, call: LayerCall, metadata: Any) -> None:
        """Write the output of edited rows over the plain one, and hand out what was measured in them."""
        single: dict[Hashable, list[tuple[Rows, AttentionEdit]]] = {}
        edited = self.rows(metadata)
        for rows in edited:
            plan = rows.request.plan(call.layer, rows, call.query.device)
            if plan is None:
                continue
            edit = plan.edit.edit
            alone = None if plan.requests else _of_last_row(edit, rows)
            if alone is not None and (which := kind(alone)) is not None:
                single.setdefault(which, []).append((rows, alone))
            elif not plan.requests and _only_head_gain(edit):
                assert edit.head_gain is not None
                gain = edit.head_gain[0]  # [Hq] or [Hq, R]
                call.output[rows.span] *= gain[..., None] if gain.dim() == 1 else gain.mT[..., None]
            else:
                _run(rows, plan, call)
        for group in single.values():
            self._run_single(group, call)
        for rows in edited:
            rows.request.leave(call.layer, rows)

    def _run_single(self, group: Sequence[tuple[Rows, AttentionEdit]], call: LayerCall) -> None:
        """The last of each of these rows, in one call."""
        device = call.query.device
        numbers = torch.tensor([rows.row for rows, _ in group], device=device)
        last = torch.tensor([rows.span.stop - 1 for rows, _ in group], device=device)
        longest = max(rows.stop for rows, _ in group)
        lengths = torch.tensor([rows.stop for rows, _ in group], device=device)
        key, value = call.pages.of(call.table[numbers], longest)
        edit = self._stacks.of([edit for _, edit in group])
        mask = None if len(group) == 1 else row_mask(lengths, longest)
        out, _ = attend(call.query[last][:, :, None], key, value, edit, mask=mask, **call.options)
        call.output[last] = out[:, :, 0]


def _run(rows: Rows, plan: LayerPlan, call: LayerCall) -> None:
    """All of the rows of one request, with what its methods measure."""
    key, value = call.pages.of(call.table[rows.row : rows.row + 1], rows.stop)
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


def _of_last_row(edit: AttentionEdit, rows: Rows) -> AttentionEdit | None:
    """The edit of a single row that does the same: of the last row, where no other is edited; None: none."""
    if rows.stop - rows.first == 1:
        return _without_rows(edit) if edit.rows is not None and _selects(edit, 0) else edit
    if edit.rows is None or edit.head_gain is not None or edit.edits_mask or edit.sink is not None:
        return None
    return _without_rows(edit) if _selects(edit, rows.stop - rows.first - 1) else None


def _selects(edit: AttentionEdit, row: int) -> bool:
    """Whether an edit selects this row, and no other."""
    rows = edit.rows
    return (
        rows is not None and rows.index.tolist() == [row] and (rows.active is None or bool(rows.active.all()))
    )


def _without_rows(edit: AttentionEdit) -> AttentionEdit:
    """The same edit of a single row: made once, so that its stack is."""
    if "single" not in edit.backend_cache:
        edit.backend_cache["single"] = edit.replace(rows=None)
    single: AttentionEdit = edit.backend_cache["single"]
    return single


def _only_head_gain(edit: AttentionEdit) -> bool:
    return edit.head_gain is not None and edit.uses_own_weights and edit.score_gate is None
