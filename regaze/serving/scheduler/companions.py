"""Companions: the requests of second contexts, in the process of the scheduler.

A request whose methods have second contexts enters the scheduler with a companion for each, right behind it.
They are scheduled as any requests are, first come, first served, so that of all groups of a request and its
companions at most one is in part running and in part waiting. Tokens are sampled when the last rows of a
whole group ran in one step (`mixing`); those that ran without the others run again in the next step.
Companions end with their request; what they would answer leaves no engine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from copy import copy
from typing import Any

from regaze.caching import cached_property
from regaze.errors import UnsupportedModelError
from regaze.serving.common import wire
from regaze.serving.common.contexts import acting
from regaze.serving.common.limits import CONTEXTS, check_limit
from regaze.serving.common.prompts import context_of, reader_of
from regaze.serving.common.release import KEY
from regaze.serving.common.seconds import Second, media_of, seconds_of
from regaze.toolkit.prompts.prompt_reader import PromptReader

_log = logging.getLogger(__name__)

#: The attribute of a request that enters with its companions.
COMPANIONS = "_regaze_companions"
#: That of a scheduler with its `Groups`.
_GROUPS = "_regaze_groups"
#: The attribute of a request whose companions could not be made.
REFUSED = "_regaze_refused"
#: Steps without progress after which a group does not fit into the cache.
_PATIENCE = 16


# Requests are made ----------------------------------------------------------------------------------------


class Maker:
    """Makes the companions of the requests of one engine, by its `ModelConfig`."""

    def __init__(self, model_config: Any, block_hasher: Any):
        self._model, self._hasher = model_config, block_hasher

    @cached_property
    def _reader(self) -> PromptReader:
        return reader_of(self._model)

    def make(self, request: Any) -> list[Any]:
        """The companions of a `Request`; writes into it and them what each context needs to know.

        Raises:
            RegazeError: its second contexts cannot be requests.
        """
        # Several answers to a prompt share one object.
        request.sampling_params = params = copy(request.sampling_params)
        carried = params.extra_args[KEY]
        methods, tokens = wire.unpacked(carried)
        callbacks = acting(methods, self._model.hf_text_config)
        features = request.mm_features
        ids, media = request.prompt_token_ids, media_of(features)
        context = context_of(self._model.hf_text_config, ids, tokens, callbacks, self._reader, media)
        seconds, learned = seconds_of(context, features, self._model), context.learned()
        check_limit(CONTEXTS, len(seconds))

        def group(name: str) -> dict[str, Any]:
            return {"name": name, "names": context.names, "learned": learned, "of": request.request_id}

        params.extra_args = {**params.extra_args, KEY: {**carried, "group": group(context.name)}}
        room = self._model.max_model_len - max((len(second.ids) for second in seconds), default=0)
        request.max_tokens = min(request.max_tokens, room)  # the longest context has to take the answer
        companions = []
        for number, second in enumerate(seconds):
            own = {**wire.packed(methods, second.tokens), "group": group(second.name)}
            if "shared" in carried:
                own["shared"] = len(second.ids) - 1
            companions.append(self._companion(request, f"{request.request_id}-second-{number}", second, own))
        return companions

    def _companion(self, request: Any, name: str, second: Second, carried: dict[str, Any]) -> Any:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        params = SamplingParams(
            temperature=0,
            max_tokens=request.max_tokens + 1,  # never the first of them to end
            ignore_eos=True,
            detokenize=False,
            skip_reading_prefix_cache=request.skip_reading_prefix_cache,
            extra_args={KEY: carried},
        )
        return Request(
            request_id=name,
            prompt_token_ids=second.ids,
            sampling_params=params,
            pooling_params=None,
            client_index=request.client_index,
            arrival_time=request.arrival_time,
            mm_features=second.features,
            lora_request=request.lora_request,
            cache_salt=f"{request.cache_salt}-{second.key}",
            priority=request.priority,
            block_hasher=self._hasher,
        )


# In the scheduler -----------------------------------------------------------------------------------------


class Groups:
    """The groups of one scheduler: requests by name, with the names of their companions."""

    def __init__(self) -> None:
        self.companions: dict[str, list[str]] = {}
        self.main: dict[str, str] = {}
        self.refused: set[str] = set()
        self._ending: list[str] = []
        self._hidden: set[str] = set()
        self._alone: set[str] = set()
        self._stuck = 0

    def add(self, name: str, companions: list[str]) -> None:
        self.companions[name] = companions
        self.main.update(dict.fromkeys(companions, name))

    def mains(self, names: Iterable[str]) -> list[str]:
        """These requests, companions replaced by those whose they are."""
        return list(dict.fromkeys(self.main.get(name, name) for name in names))

    def freed(self, name: str) -> None:
        """A request has ended: its companions have to, or the one whose companion it is."""
        self.refused.discard(name)
        for companion in self.companions.pop(name, ()):
            self._ending.append(companion)
            self._hidden.add(companion)
            self.main.pop(companion, None)
        main = self.main.pop(name, None)
        if main is not None:
            self._hidden.add(name)
            self._alone.add(main)

    def flush(self, scheduler: Any) -> list[str]:
        """End companions of requests that have ended; names of those that have lost a companion."""
        from vllm.v1.request import RequestStatus

        if self._ending:
            ending, self._ending = self._ending, []
            scheduler.finish_requests(ending, RequestStatus.FINISHED_ABORTED)
        alone, self._alone = self._alone, set()
        return [name for name in alone if name in scheduler.requests]

    def hide(self, outputs: dict[int, Any]) -> None:
        """Take companions out of what the engine answers."""
        if not (self.main or self._hidden):
            return
        for whole in outputs.values():
            whole.outputs = [
                each
                for each in whole.outputs
                if each.request_id not in self.main and each.request_id not in self._hidden
            ]
        self._hidden.clear()

    def too_large(self, scheduler: Any, output: Any) -> str | None:
        """The request for whose companions there will be no room, since it runs alone; None: none."""
        from vllm.v1.request import RequestStatus

        name = self._without_progress(scheduler, output)
        missing = [] if name is None else [name, *self.companions.get(name, ())]
        waits = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        away = [scheduler.requests[each].status for each in missing if each in scheduler.requests]
        stuck = any(status in waits for status in away)
        self._stuck = self._stuck + 1 if stuck else 0
        if self._stuck < _PATIENCE:
            return None
        self._stuck = 0
        return name

    def _without_progress(self, scheduler: Any, output: Any) -> str | None:
        """The only group of which anything runs, one row of each, and not all: they wait for the others."""
        counts = output.num_scheduled_tokens
        names = {self.main.get(name, name) for name in counts}
        if len(names) != 1 or any(count > 1 for count in counts.values()):
            return None
        (name,) = names
        return name if 0 < len(counts) < 1 + len(self.companions.get(name, ())) else None


def groups_of(scheduler: Any) -> Groups:
    found: Groups = scheduler.__dict__.setdefault(_GROUPS, Groups())
    return found


def run_again(scheduler: Any, names: Iterable[str]) -> None:
    """These requests' last rows ran, and nothing was sampled from them: they run once more."""
    for name in names:
        request = scheduler.requests.get(name)
        if request is not None and not request.is_finished():
            request.num_computed_tokens -= 1


def check_room(scheduler: Any, output: Any) -> list[str]:
    """Names of requests that have to end, since their contexts do not fit into the cache together."""
    name = groups_of(scheduler).too_large(scheduler, output)
    if name is None:
        return []
    error = UnsupportedModelError(
        "the engine's cache, or its number of sequences, has no room for all contexts of this request"
    )
    _log.error("regaze: request %s ends: %s", name, error)
    return [name]
