"""`EngineEdits`: the edited requests of one model runner, and what a layer does with their rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regaze.caching import cached_property
from regaze.errors import UnsupportedModelError
from regaze.kernels import AttentionEdit, attend_paged
from regaze.serving.common import wire
from regaze.serving.common.contexts import ServedContext, acting
from regaze.serving.common.newest import Newest
from regaze.serving.common.prompts import context_of, reader_of
from regaze.serving.common.release import KEY
from regaze.serving.worker.acts import Act, CompiledStep, LayerCall, Rows, only_gain
from regaze.serving.worker.heads import Heads, WorkerError, agreed, meets
from regaze.serving.worker.layer_logits import EngineLogits
from regaze.serving.worker.mixing import Mixing
from regaze.serving.worker.recorder import begin_record, end_record
from regaze.serving.worker.requests import Acts, EditedRequest
from regaze.serving.worker.row_values import RowValues
from regaze.serving.worker.stacking import Stacks
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.prompts.prompt_reader import PromptReader
from regaze.toolkit.prompts.token_map import TokenMap

if TYPE_CHECKING:
    from regaze.kernels.numba.paged import PagedTensors

_log = logging.getLogger(__name__)

#: Of how many methods and prompts the edits are kept for further requests.
_REMEMBERED = 512


@dataclass
class Alike:
    """What requests with the same methods on the same tokens have in common.

    Attributes:
        callbacks: of the methods. tokens: the roles. acts: what is done in layers, where that is known.
        context: of the first of them, where all that is done follows from methods and tokens: callbacks have
            stored the same for the others, which need no contexts of their own.
    """

    callbacks: tuple[Callback, ...]
    tokens: TokenMap
    acts: Acts
    context: ServedContext | None = None


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
        self._compiled: CompiledStep | None = None
        self._failed: list[str] = []
        self._stacks, self._values = Stacks(), RowValues()
        self._alike = Newest[str, Alike](_REMEMBERED)

    # A forward ----------------------------------------------------------------------------------------

    def begin_step(self, ended: Iterable[str]) -> None:
        """A forward of requests is about to run, and the `ended` ones will be in none any more.

        No other forward (warming up, idle ones) is edited.
        """
        self._rows = self._compiled = None
        for name in ended:
            end_record(name, None)
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
        config, alike = self._runner.model_config.hf_text_config, self._alike_of(carried)
        callbacks = alike.callbacks
        if "record" in carried:
            whole, tokenizer = self._runner.model_config.hf_config, self._reader.tokenizer
            writes = self._heads is None or self._heads.first == 0  # one record, of the first process
            recorder = begin_record(state.req_id, carried["record"], whole, tokenizer, writes=writes)
            callbacks = (*callbacks, recorder)
        context = None if "record" in carried else alike.context
        if context is not None:
            return EditedRequest(callbacks, context, state.req_id, self._heads, alike.acts, is_prepared=True)
        context = context_of(config, state.prompt_token_ids, alike.tokens, callbacks, self._reader)
        context.layer_logits_reader = self.layer_logits
        group = carried.get("group")
        if group is not None:
            context.become(group["name"], group["names"], group["learned"])
        request = EditedRequest(callbacks, context, state.req_id, self._heads, alike.acts)
        request.group = state.req_id if group is None else group["of"]
        if (request.needs_hidden or request.capturing) and not self.shows_hidden:
            raise UnsupportedModelError("this model's decoder layers do not show hidden states")
        if request.follows_from_tokens:
            alike.context = context
        return request

    def forget(self) -> None:
        """Forget what earlier requests had in common with further ones."""
        self._alike.clear()

    def _alike_of(self, carried: Any) -> Alike:
        key = carried.get("alike")
        if key is not None and key in self._alike:
            return self._alike[key]
        methods, tokens = wire.unpacked(carried)
        found = Alike(acting(methods, self._runner.model_config.hf_text_config), tokens, {})
        if key is not None:
            self._alike[key] = found
        return found

    @cached_property
    def _reader(self) -> PromptReader:
        return reader_of(self._runner.model_config)

    def show_hidden(self, layer: int, stream: Callable[[], Tensor], metadata: Any) -> None:
        """The residual stream [T, D] is about to enter a layer; `stream` adds it up, once for all."""
        stream = cache(stream)
        for rows in self.rows(metadata):
            request = rows.request
            if not request.reads_hidden:
                continue
            if request.needs_hidden and rows.step == 0:
                with self.failing(request):
                    request.show_hidden(layer, rows, stream()[rows.span])
            if layer in request.context.captured_layers:
                with self.failing(request):
                    request.capture(layer, stream()[rows.span])

    # Errors -------------------------------------------------------------------------------------------

    def failing(self, *requests: EditedRequest) -> Failing:
        """A block in which an error is one of these requests."""
        return Failing(self, requests)

    def fail(self, request: EditedRequest, error: Exception) -> None:
        """A request ends with an error of its methods."""
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
        end_record(name, None)

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
        edited = self.rows(metadata)
        self._keep_values(edited, call, metadata)
        acts = self._acts(edited, call)
        if call.compiled is not None:
            acts = self._run_compiled(acts, call.compiled)
        alone: dict[Hashable, list[tuple[Rows, AttentionEdit]]] = {}
        for rows, act in acts:
            if rows.request.failed:  # in other rows of it
                continue
            with self.failing(rows.request):
                if act.alone is not None:
                    which, edit = act.alone
                    alone.setdefault(which, []).append((rows, edit))
                    continue
                with self.together() if act.meets else nullcontext():
                    act.run(rows, call)
        for which, group in alone.items():
            self._run_group(which, group, call)
        for rows in edited:
            if rows.ends_prompt and not rows.request.failed:
                with self.failing(rows.request):
                    rows.request.leave(call.layer, rows)

    def _acts(self, edited: Sequence[Rows], call: LayerCall) -> list[tuple[Rows, Act]]:
        """What is done with which rows in this layer, on all workers alike."""
        found, layer, device = list[tuple[Rows, Act]](), call.layer, call.query.device
        for rows in edited:
            request = rows.request
            if request.failed:
                continue
            try:
                if request.reading and rows.step == 0 and not rows.again:
                    request.take_values(call, rows, self._values)
                if (act := request.act(layer, rows, device)) is not None:
                    found.append((rows, act))
            except Exception as error:
                self.fail(request, error)
        self.agree()
        return [(rows, act) for rows, act in found if not rows.request.failed]

    def _run_compiled(self, acts: list[tuple[Rows, Act]], tensors: PagedTensors) -> list[tuple[Rows, Act]]:
        """Do what the compiled kernel does, in one call; returns the rest."""
        step = self._compiled
        if step is None or not step.serves(acts, tensors):  # layers often do what the one before did
            step = self._compiled = CompiledStep(acts, tensors)
            for rows, act in acts:
                if not rows.request.failed:
                    with self.failing(rows.request):
                        step.add(rows, act)
        step.rows.run(tensors)
        return step.rest

    def _keep_values(self, edited: Sequence[Rows], call: LayerCall, metadata: Any) -> None:
        """Of all requests first: some may have taken the pages of others that run in this forward."""
        for rows in edited:
            if rows.request.reading and rows.step == 0 and not rows.request.failed:
                with self.failing(rows.request):
                    rows.request.keep_values(call, rows, metadata.slot_mapping[rows.span], self._values)

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
        last = torch.tensor([rows.span.stop - 1 for rows, _ in group], device=call.query.device)
        edit = self._stacks.of([edit for _, edit in group], (call.layer, which))
        if (gain := only_gain(edit)) is not None:
            call.output[last] *= gain[..., None]
            return
        pages, query = call.pages_of([rows for rows, _ in group]), call.query[last][:, :, None]
        out, _ = attend_paged(query, call.keys, call.values, *pages, edit, **call.options)
        call.output[last] = out[:, :, 0]


class Failing:
    """A block in which an error is one of some requests. Entered for each of them in each layer."""

    __slots__ = ("_edits", "_requests")

    def __init__(self, edits: EngineEdits, requests: Sequence[EditedRequest]):
        self._edits, self._requests = edits, requests

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        for request in self._requests:
            self._edits.fail(request, error)
        return True


def carried_by(state: Any) -> Any:
    """What admission put into a request, by the runner's state of it; None: it is plain."""
    params = state.sampling_params
    return None if params is None else (params.extra_args or {}).get(KEY)
