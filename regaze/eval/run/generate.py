"""Asking a model its questions: which go together, and what happens when a batch fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from regaze.errors import InputError, RegazeError
from regaze.eval.cost import Cost
from regaze.eval.run import ranking
from regaze.eval.run.metering import Steps, measured
from regaze.eval.run.prefix_cache import PrefixSharing
from regaze.eval.run.requests import Method, Request, Setting
from regaze.eval.run.sampling import sampler
from regaze.toolkit.prompts.images import open_image


class Model(Protocol):
    """What the runner needs of a `regaze.Gaze`; of a whole one forwards are counted and prefixes shared."""

    def ask(self, images: Sequence[Any], questions: Sequence[str], **kwargs: Any) -> list[str]:
        """One answer per question."""

    def using(self, *interventions: Any) -> Any:
        """A context in which the interventions are active."""


class Answered:
    """A batch after it was asked.

    Attributes:
        answers: by the requests' keys. errors: likewise, where a request failed by itself.
        cost: of those answered.
    """

    def __init__(self, answers: Mapping[str, str], errors: Mapping[str, str], cost: Cost):
        self.answers, self.errors, self.cost = answers, errors, cost


class Asker:
    """Asks requests of a model under one setting; use it as a context.

    Attributes:
        batch_size: requests asked at once; memory that runs out halves it.
        sharing: shares prefixes, or knows why it does not.
    """

    def __init__(self, gaze: Model, setting: Setting, *, batch_size: int, share_prefix: bool = True):
        self.gaze, self.setting, self.batch_size = gaze, setting, batch_size
        self.sharing = PrefixSharing(gaze, setting.method, setting.options)
        if not share_prefix:
            self.sharing.obstacle = "it was switched off"
        self._asks_itself = hasattr(setting.method, "ask")
        if setting.sampled and self._asks_itself:
            self.batch_size = 1  # it draws several times, and how often depends on the longest answer beside

    def probe(self, requests: Sequence[Request]) -> None:
        """Ask a question and forget the answer, so that the first batch is as fast as the others.

        What cannot work on this model raises now: the error of the last of up to three questions, from all
        over the benchmark, when every one fails.
        """
        readable = [request for request in _some(requests) if _readable(request)]
        for number, request in enumerate(readable, start=1):
            try:
                with self._active() as ask:
                    self._answers(ask, [request], Steps())
                return
            except Exception:
                if number == len(readable):
                    raise

    def plan(self, requests: Sequence[Request]) -> list[list[Request]]:
        """The batches in which to ask: about the same images if prefixes are shared, else of like length."""
        if self.sharing.obstacle is None and any(request.options for request in requests):
            self.sharing.obstacle = "given answers are ranked, each behind a prompt of its own"
        batches = self._cut(requests)
        readable = [request for request in batches[0] if _readable(request)] if batches else []
        if self.sharing.obstacle is None and readable:
            with self._active():
                self.sharing.check([r.images for r in readable], [r.prompt for r in readable])
            batches = self._cut(requests)
        return batches

    def _cut(self, requests: Sequence[Request]) -> list[list[Request]]:
        kinds: dict[tuple[int, int | None, int], list[Request]] = {}
        for request in requests:
            kind = len(request.images), request.max_new_tokens, len(request.options)
            kinds.setdefault(kind, []).append(request)
        cut = _by_image if self.sharing.obstacle is None else _by_length
        return [
            batch
            for (_, _, rows), alike in kinds.items()
            for batch in cut(alike, max(1, self.batch_size // max(1, rows)))
        ]

    def ask(self, requests: Sequence[Request]) -> Iterator[Answered]:
        """The answers to one batch of the plan, in as many parts as it takes.

        A batch that fails is halved until the request that does so is alone; that one becomes an error.
        Out of memory, batches stay as small from then on.
        """
        size = max(1, min(self.batch_size, len(requests)))
        for start in range(0, len(requests), size):
            yield from self._attempt(requests[start : start + size])

    def _attempt(self, requests: Sequence[Request]) -> Iterator[Answered]:
        failure: str | None = None
        steps, tight = Steps(), False
        try:
            with self._active() as ask, measured(self.gaze) as cost:
                answers = self._answers(ask, requests, steps)
        except Exception as error:  # whatever a model does to one question must not end the others
            failure = reason(error)
            if tight := _out_of_memory(error):
                self.batch_size = max(1, len(requests) // 2)
        if failure is None:
            cost.answers = len(requests)
            cost.tokens = len(requests) * (steps.count or self._longest(answers, requests[0]))
            yield Answered({r.key: a for r, a in zip(requests, answers, strict=True)}, {}, cost)
            return
        if tight:  # here, not above: while it was handled, the error held the tensors
            clear_device_cache(garbage_collection=True)
        if len(requests) == 1:
            yield Answered({}, {requests[0].key: failure}, Cost())
            return
        half = len(requests) // 2
        yield from self._attempt(requests[:half])
        yield from self._attempt(requests[half:])

    def _answers(self, ask: Callable[..., list[str]], requests: Sequence[Request], steps: Steps) -> list[str]:
        images, prompts = [request.images for request in requests], [request.prompt for request in requests]
        if requests[0].options:
            ranking.check(self.setting.method)
            return ranking.likeliest(self.gaze, images, prompts, [r.options for r in requests], steps)
        options = dict(self.setting.options)
        if requests[0].max_new_tokens is not None:
            options["max_new_tokens"] = requests[0].max_new_tokens
        if self.setting.sampled:
            options = sampler(options, [request.key for request in requests], self.setting.seed)
        if isinstance(getattr(self.gaze, "model", None), torch.nn.Module) and not self._asks_itself:
            options["stopping_criteria"] = [steps]
        if self.sharing.obstacle is None:
            return self.sharing.ask(images, prompts, options)
        return ask([list(entry) for entry in images], prompts, batch_size=len(prompts), **options)

    @contextmanager
    def _active(self) -> Iterator[Callable[..., list[str]]]:
        """`gaze.ask` under the method: one that acts in the model's forwards, or asks in its own way."""
        method: Method | None = self.setting.method
        if self._asks_itself:
            yield partial(self.gaze.ask, method=method)
        else:
            with nullcontext() if method is None else self.gaze.using(method):
                yield self.gaze.ask

    def _longest(self, answers: Sequence[str], request: Request) -> int:
        """Tokens of the longest answer and its end, where a method asks in its own way, unobserved."""
        tokenizer = getattr(getattr(self.gaze, "reader", None), "tokenizer", None)
        if tokenizer is None:
            return 0
        lengths = [len(tokenizer(f"x {answer}")["input_ids"]) for answer in answers]
        longest = max(lengths) - len(tokenizer("x")["input_ids"]) + 1
        limit = request.max_new_tokens or self.setting.options.get("max_new_tokens")
        return min(longest, limit or longest)


def reason(error: Exception) -> str:
    """What is kept of an error: our own say what was wrong, of others the kind is needed, too."""
    return str(error) if isinstance(error, RegazeError) else f"{type(error).__name__}: {error}"


def _out_of_memory(error: Exception) -> bool:
    memory = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, memory) or should_reduce_batch_size(error)


def _some(requests: Sequence[Request]) -> list[Request]:
    """The first, the middle and the last, as far as they differ."""
    places = dict.fromkeys((0, len(requests) // 2, len(requests) - 1)) if requests else {}
    return [requests[place] for place in places]


def _readable(request: Request) -> bool:
    try:
        return all(open_image(image) for image in request.images)
    except InputError:
        return False


def _by_length(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Prompts of like length pad each other least. The longest come first: memory runs out early or never."""
    ordered = sorted(requests, key=lambda request: len(request.prompt), reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _by_image(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Questions about the same images in one batch, as far as they fit; batches hold several such groups."""
    groups: dict[Any, list[Request]] = {}
    for request in requests:
        groups.setdefault(request.images, []).append(request)
    parts = [part for group in groups.values() for part in _by_length(group, size)]
    parts.sort(key=lambda part: (len(part), len(part[0].prompt)), reverse=True)
    batches: list[list[Request]] = []
    for part in parts:
        if batches and len(batches[-1]) + len(part) <= size:
            batches[-1] += part
        else:
            batches.append(part)
    return batches
