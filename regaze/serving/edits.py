"""`EngineEdits`: the edited requests of one model runner, and what a layer does with their rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from regaze.errors import UnsupportedModelError
from regaze.kernels import AttentionEdit, attend_paged
from regaze.kernels.pages import Pages
from regaze.serving import records, wire
from regaze.serving.admission import acting
from regaze.serving.heads import Heads, WorkerError, agreed, meets
from regaze.serving.layer_logits import EngineLogits
from regaze.serving.mixing import Mixing
from regaze.serving.prompts import context_of, reader_of
from regaze.serving.release import KEY
from regaze.serving.requests import EditedRequest, Rows
from regaze.serving.stacking import Stacks, kind
from regaze.toolkit.model.layer_plan import LayerPlan
from regaze.toolkit.prompts.prompt_reader import PromptReader

_log = logging.getLogger(__name__)


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


class EngineEdits:
    """What requests of an engine ask of its attention layers.

    An error in what a request's methods do is that request's: it is edited no more, and `failed` names it, so
    that the scheduler ends it. It is never answered as if it were plain.

    Args:
        runner: vLLM's model runner, whose batch says which rows are whose.
        heads: of this process, where several share them; None: all.

    Attributes:
        obstacle: why this model's layers cannot be edited; "": they can. Then all requests with methods fail.
        shows_hidden: hidden states are shown to requests that read them. mixing: what is done to logits.
        layer_logits: reads logits from hidden states, where they are shown.
    """

    def __init__(self, runner: Any, obstacle: str = "", heads: Heads | None = None):
        self._runner, self._heads = runner, heads
        self.mixing = Mixing(runner, self)
        self.obstacle, self.shows_hidden = obstacle, False
        self.layer_logits: EngineLogits | None = None
        self._requests: dict[str, EditedRequest | None] = {}
        self._rows: Sequence[Rows] | None = ()
        self._failed: list[str] = []
        self._stacks = Stacks()

    # A forward ----------------------------------------------------------------------------------------

    def begin_step(self, ended: Iterable[str]) -> None:
        """A forward of requests is about to run, and the `ended` ones will be in none any more.

        No other forward (warming up, idle ones) is edited.
        """
        self._rows = None
        for name in ended:
            records.end(name, None)
            if self._requests.pop(name, None) is not None:
                self._stacks.clear()

    def rows(self, metadata: Any) -> Sequence[Rows]:
        """The rows of edited requests in the forward that runs.

        Worked out in its first layer: groups of layers have different metadata, and the same rows.
        """
        if self._rows is None:
            found = self._find_rows(metadata)
            self.agree()
            self._rows = [rows for rows in found if not rows.request.failed]
        return self._rows

    def _find_rows(self, metadata: Any) -> list[Rows]:
        live = {name: self.request(name) for name in self._runner.input_batch.req_ids}
        found = list[Rows]()
        if not any(live.values()):
            return found
        starts, lengths = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
        for number, request in enumerate(live.values()):
            if request is None or number + 1 >= len(starts):
                continue
            start, count, length = starts[number], starts[number + 1] - starts[number], lengths[number]
            with self.failing(request):
                found += request.rows(number, start, length - count, length)
        return found

    def request(self, name: str) -> EditedRequest | None:
        """None: it is plain, or has failed."""
        if name not in self._requests:
            state = self._runner.requests.get(name)
            try:
                self._requests[name] = None if state is None else self._begin(state)
            except Exception as error:
                self._requests[name] = None
                self._fail(name, error)
        found = self._requests[name]
        return None if found is None or found.failed else found

    def _begin(self, state: Any) -> EditedRequest | None:
        """A request as admission left it."""
        carried = carried_by(state)
        if not carried:
            return None
        if self.obstacle:
            raise UnsupportedModelError(self.obstacle)
        methods, tokens = wire.unpacked(carried)
        config = self._runner.model_config.hf_text_config
        callbacks = acting(methods, config)
        if "record" in carried:
            whole, tokenizer = self._runner.model_config.hf_config, self._reader.tokenizer
            writes = self._heads is None or self._heads.first == 0  # one record, of the first process
            recorder = records.begin(state.req_id, carried["record"], whole, tokenizer, writes=writes)
            callbacks = (*callbacks, recorder)
        context = context_of(config, state.prompt_token_ids, tokens, callbacks, self._reader)
        context.layer_logits_reader = self.layer_logits
        group = carried.get("group")
        if group is not None:
            context.become(group["name"], group["names"], group["learned"])
        request = EditedRequest(callbacks, context, state.req_id, self._heads)
        request.group = state.req_id if group is None else group["of"]
        if (request.needs_hidden or request.capturing) and not self.shows_hidden:
            raise UnsupportedModelError("this model's decoder layers do not show hidden states")
        return request

    @cached_property
    def _reader(self) -> PromptReader:
        return reader_of(self._runner.model_config)

    def show_hidden(self, layer: int, stream: Callable[[], Tensor], metadata: Any) -> None:
        """The residual stream [T, D] is about to enter a layer; `stream` adds it up, once for all."""
        stream = cache(stream)
        for rows in self.rows(metadata):
            request = rows.request
            if request.needs_hidden and rows.step == 0 and not rows.again:
                with self.failing(request):
                    request.show_hidden(layer, rows, stream()[rows.span])
            if layer in request.context.captured_layers:
                with self.failing(request):
                    request.capture(layer, stream()[rows.span])

    # Errors -------------------------------------------------------------------------------------------

    @contextmanager
    def failing(self, *requests: EditedRequest) -> Iterator[None]:
        """An error inside is one of these requests."""
        try:
            yield
        except Exception as error:
            for request in requests:
                request.failed = True
                self._fail(request.name, error)

    def agree(self) -> None:
        """What has failed on one of several workers has failed on all, which meet here."""
        if self._heads is None:
            return
        state = self._runner.requests
        names = [name for name in self._runner.input_batch.req_ids if carried_by(state[name])]
        failed = agreed([self.request(name) is None for name in names]) if names else ()
        for name in compress(names, failed):
            if (request := self.request(name)) is not None:
                with self.failing(request):
                    raise WorkerError

    def together(self) -> AbstractContextManager[None]:
        """A block in which workers that share heads wait for each other, see `Heads.together`."""
        return nullcontext() if self._heads is None else self._heads.together()

    def _fail(self, name: str, error: Exception) -> None:
        _log.error("regaze: request %s ends with an error of its methods", name, exc_info=error)
        self._failed.append(name)
        records.end(name, None)

    def give_up(self, error: Exception) -> None:
        """It is not known what became of this forward's edits: all of its requests with methods fail."""
        self._rows = self._rows or ()
        for name in self._runner.input_batch.req_ids:
            if (request := self.request(name)) is not None:
                with self.failing(request):
                    raise error

    def failed(self) -> list[str]:
        """The forward has run: names of the requests that have failed in it.

        Requests with methods that no layer has seen are among them.
        """
        self._rows = ()
        self.agree()
        if self.obstacle:
            for name in self._runner.input_batch.req_ids:
                self.request(name)
        found, self._failed = self._failed, []
        return found

    # A layer ------------------------------------------------------------------------------------------

    def edit(self, call: LayerCall, metadata: Any) -> None:
        """Write the output of edited rows over the plain one, and hand out what was measured in them."""
        single: dict[Hashable, list[tuple[Rows, AttentionEdit]]] = {}
        edited, plans = self.rows(metadata), list[tuple[Rows, LayerPlan]]()
        for rows in edited:
            if not rows.request.failed:
                with self.failing(rows.request):
                    if (plan := rows.request.plan(call.layer, rows, call.query.device)) is not None:
                        plans.append((rows, plan))
        self.agree()
        for rows, plan in plans:
            if not rows.request.failed:
                with self.failing(rows.request):
                    if (alone := _alone(rows, plan)) is not None:
                        single.setdefault(alone[0], []).append((rows, alone[1]))
                        continue
                    with self.together() if plan.requests or meets(plan.edit.edit) else nullcontext():
                        _run(rows, plan, call)
        for which, group in single.items():
            self._run_group(which, group, call)
        for rows in edited:
            if not rows.request.failed:
                with self.failing(rows.request):
                    rows.request.leave(call.layer, rows)

    def _run_group(
        self, which: Hashable, group: Sequence[tuple[Rows, AttentionEdit]], call: LayerCall
    ) -> None:
        meeting = self.together if meets(group[0][1]) else nullcontext
        try:
            with meeting():
                self._run_single(which, group, call)
        except Exception:
            for one in group:  # it is not known whose the error is
                with self.failing(one[0].request), meeting():
                    self._run_single(which, [one], call)

    def _run_single(
        self, which: Hashable, group: Sequence[tuple[Rows, AttentionEdit]], call: LayerCall
    ) -> None:
        """The last of each of these rows, in one call."""
        pages = call.pages_of([rows for rows, _ in group])
        last = torch.tensor([rows.span.stop - 1 for rows, _ in group], device=call.query.device)
        edit = self._stacks.of([edit for _, edit in group], (call.layer, which))
        query = call.query[last][:, :, None]
        out, _ = attend_paged(query, call.keys, call.values, *pages, edit, **call.options)
        call.output[last] = out[:, :, 0]


def carried_by(state: Any) -> Any:
    """What admission put into a request, by the runner's state of it; None: it is plain."""
    params = state.sampling_params
    return None if params is None else (params.extra_args or {}).get(KEY)


def _alone(rows: Rows, plan: LayerPlan) -> tuple[Hashable, AttentionEdit] | None:
    """The edit of the last row, to run with others of its kind; None: it does not."""
    alone = None if plan.requests else _of_last_row(plan.edit.edit, rows)
    return None if alone is None or (which := kind(alone)) is None else (which, alone)


def _run(rows: Rows, plan: LayerPlan, call: LayerCall) -> None:
    """All of the rows of one request, with what its methods measure."""
    whole = plan.edit.edit
    if not plan.requests and _only_head_gain(whole):
        assert whole.head_gain is not None
        gain = whole.head_gain[0]  # [Hq] or [Hq, R]
        call.output[rows.span] *= gain[..., None] if gain.dim() == 1 else gain.mT[..., None]
        return
    pages = call.pages_of([rows])
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
