"""What is wrapped around methods of vLLM's `EngineCore`, of its `Scheduler`, and of its cache of prefixes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from regaze.serving.common.messages import AGAIN, ANSWERS, FAILED
from regaze.serving.common.release import KEY
from regaze.serving.common.wire import shared_rows
from regaze.serving.records import is_recorded
from regaze.serving.scheduler.companions import COMPANIONS, REFUSED, Maker, check_room, groups_of, run_again
from regaze.serving.worker.recorder import end_record

_log = logging.getLogger(__name__)


def preparing(preprocess_add_request: Callable[..., Any]) -> Callable[..., Any]:
    """Where requests enter the engine; after an error the request ends when it is scheduled."""

    def preprocessed(self: Any, *args: Any, **kwargs: Any) -> Any:
        request, wave = preprocess_add_request(self, *args, **kwargs)
        params = request.sampling_params
        carried = (params.extra_args or {}).get(KEY) if params is not None else None
        if isinstance(carried, dict) and carried.get("coupled"):
            if "_regaze_maker" not in self.__dict__:
                config = self.vllm_config.model_config
                self.__dict__["_regaze_maker"] = Maker(config, self.request_block_hasher)
            try:
                setattr(request, COMPANIONS, self.__dict__["_regaze_maker"].make(request))
            except Exception as error:
                _log.error("regaze: %s ends: no second contexts", request.request_id, exc_info=error)
                setattr(request, REFUSED, True)
        return request, wave

    return preprocessed


def adding(add_request: Callable[..., Any]) -> Callable[..., Any]:
    """In the scheduler: companions come right behind their request."""

    def added(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = add_request(self, request, *args, **kwargs)
        companions = getattr(request, COMPANIONS, ())
        if hasattr(request, REFUSED):
            groups_of(self).refused.add(request.request_id)
        if companions:
            groups_of(self).add(request.request_id, [each.request_id for each in companions])
            for companion in companions:
                add_request(self, companion, *args, **kwargs)
        return result

    return added


def following(ready: Callable[..., Any]) -> Callable[..., Any]:
    """In the scheduler: a companion waits until its request runs, which may wait for its grammar."""
    from vllm.v1.request import RequestStatus

    def handled(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        main = groups_of(self).main.get(request.request_id)
        if main is not None and self.requests[main].status != RequestStatus.RUNNING:
            return False
        return ready(self, request, *args, **kwargs)

    return handled


def failing(update: Callable[..., Any]) -> Callable[..., Any]:
    """In the scheduler: end these with an error, before their tokens of this step are taken for answers."""

    def updated(self: Any, scheduled: Any, output: Any) -> Any:
        groups = groups_of(self)
        refused = groups.refused.intersection(scheduled.num_scheduled_tokens)
        failed = list(getattr(output, FAILED, ()))
        readers = {reader for name in failed for reader in _readers(self, scheduled, name)}
        ended = _end(self, [*failed, *readers.difference(failed), *refused])
        run_again(self, getattr(output, AGAIN, ()))
        result = update(self, scheduled, output)
        ended += _end(self, [*groups.flush(self), *check_room(self, scheduled)])
        groups.hide(result)
        if ended:
            from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

            for request in ended:
                reason = request.get_finished_reason()
                told = EngineCoreOutput(request_id=request.request_id, new_token_ids=[], finish_reason=reason)
                whole = result.setdefault(request.client_index, EngineCoreOutputs())
                whole.outputs = [*whole.outputs, told]
        return result

    return updated


def _readers(scheduler: Any, scheduled: Any, name: str) -> list[str]:
    """Other requests of this step with pages that a failed one has filled in it: not as its methods say."""
    if name not in scheduler.requests or (first := _first_row(scheduled, name)) is None:
        return []
    pages_of = scheduler.kv_cache_manager.get_block_ids
    filled = {page for group in pages_of(name) for page in group[first // scheduler.block_size :]}
    others = [
        other for other in scheduled.num_scheduled_tokens if other != name and other in scheduler.requests
    ]
    return [other for other in others if any(not filled.isdisjoint(group) for group in pages_of(other))]


def _first_row(scheduled: Any, name: str) -> int | None:
    """The place of the first row of a request in this step; None: it is not in it."""
    for new in scheduled.scheduled_new_reqs:
        if new.req_id == name:
            return int(new.num_computed_tokens)
    cached = scheduled.scheduled_cached_reqs
    return int(cached.num_computed_tokens[cached.req_ids.index(name)]) if name in cached.req_ids else None


def _end(scheduler: Any, names: Sequence[str]) -> list[Any]:
    """End requests with an error, for companions theirs; nobody reads the pages that they leave."""
    from vllm.v1.request import RequestStatus

    for name in names:
        if name in scheduler.requests:
            pages = scheduler.kv_cache_manager.get_block_ids(name)
            scheduler.kv_cache_manager.evict_blocks({page for group in pages for page in group})
    if not names:
        return []
    mains = groups_of(scheduler).mains(names)
    ended: list[Any] = scheduler.finish_requests(mains, RequestStatus.FINISHED_ERROR)
    return ended


def ending(free: Callable[..., Any]) -> Callable[..., Any]:
    """In the scheduler: a request has ended: its companions do, too, and its record is written."""

    def freed(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = free(self, request, *args, **kwargs)
        groups_of(self).freed(request.request_id)
        if is_recorded(request.sampling_params):
            answer = list(request.output_token_ids)
            if not end_record(request.request_id, answer):  # the model runs in another process
                self.__dict__.setdefault(ANSWERS, {})[request.request_id] = answer
        return result

    return freed


def telling(schedule: Callable[..., Any]) -> Callable[..., Any]:
    """In the scheduler: say which recorded requests have ended, so that their records are written."""

    def scheduled(self: Any, *args: Any, **kwargs: Any) -> Any:
        groups_of(self).flush(self)
        output = schedule(self, *args, **kwargs)
        if answers := self.__dict__.pop(ANSWERS, None):
            setattr(output, ANSWERS, answers)
        return output

    return scheduled


def sharing(cache_blocks: Callable[..., Any]) -> Callable[..., Any]:
    """In the scheduler: share no pages with rows that are edited for being the prompt's last or the answer's.

    To a further turn of a chat, which has them in its prompt, they are rows like others.
    """

    def cached(self: Any, request: Any, count: int, *args: Any, **kwargs: Any) -> Any:
        limit = shared_rows(request.sampling_params)
        return cache_blocks(self, request, count if limit is None else min(count, limit), *args, **kwargs)

    return cached
