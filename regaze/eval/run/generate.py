"""Generate the answers to requests under one condition: form batches, recover from batches that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from regaze.errors import InputError, RegazeError
from regaze.eval.cost import Cost
from regaze.eval.run import ranking
from regaze.eval.run.metering import TokenCounter, measure_cost
from regaze.eval.run.prefix_cache import PrefixSharing
from regaze.eval.run.requests import AnswerRequest, Condition, Method
from regaze.eval.run.sampling import sampling_options
from regaze.toolkit.prompts.images import open_image
from regaze.toolkit.prompts.video import Video, open_video


class Model(Protocol):
    """What the runner needs of a `regaze.Gaze`; of a real one forwards are counted and prefixes shared."""

    def ask(self, images: Sequence[Any], questions: Sequence[Any], **kwargs: Any) -> list[str]:
        """One answer per question."""

    def using(self, *interventions: Any) -> Any:
        """A context in which the interventions are active."""


@dataclass(frozen=True)
class BatchAnswers:
    """The answers to a batch, or to a part of one that was halved.

    Attributes:
        answers: by the key of the request. errors: by the key of the request, for requests that fail alone.
        cost: of the answers.
    """

    answers: Mapping[str, str]
    errors: Mapping[str, str]
    cost: Cost


class AnswerGenerator:
    """Generates answers under one condition.

    Attributes:
        batch_size: requests per batch; halved when memory runs out.
        sharing: shares prefixes between requests, or holds the reason why not.
    """

    def __init__(self, gaze: Model, condition: Condition, *, batch_size: int, share_prefix: bool = True):
        self.gaze, self.condition, self.batch_size = gaze, condition, batch_size
        self.sharing = PrefixSharing(gaze, condition.method, condition.generate_kwargs)
        if not share_prefix:
            self.sharing.obstacle = "it was switched off"
        self._is_multi_pass = hasattr(condition.method, "answer")
        if condition.is_sampled and self._is_multi_pass:
            # It samples several times, and how often depends on the longest answer in the batch.
            self.batch_size = 1

    @property
    def obstacle(self) -> str | None:
        """Why no prefixes are shared; None where they are."""
        return self.sharing.obstacle

    def check(self, requests: Sequence[AnswerRequest]) -> None:
        """Every method may try: what it cannot do, the model raises."""

    def warm_up(self, requests: Sequence[AnswerRequest]) -> None:
        """Answer one request and drop the answer, so that the first batch is as fast as the others.

        Tries up to three requests from all over the benchmark.

        Raises:
            Exception: what the model raised at the last of them, when every one failed.
        """
        readable = readable_few(requests)
        for number, request in enumerate(readable, start=1):
            try:
                with self._method_active() as ask:
                    self._answer_texts(ask, [request], TokenCounter())
                return
            except Exception:
                if number == len(readable):
                    raise

    def answer_all(self, requests: Sequence[AnswerRequest]) -> Iterator[BatchAnswers]:
        """The answers to all of the requests, batch by batch."""
        for batch in self.make_batches(requests):
            yield from self.answer(batch)

    def make_batches(self, requests: Sequence[AnswerRequest]) -> list[list[AnswerRequest]]:
        """Batches about the same images where prefixes are shared, else batches of similar length."""
        if self.sharing.obstacle is None and not all(request.is_generated for request in requests):
            self.sharing.obstacle = "given answers are decoded, each behind a prompt of its own"
        if self.sharing.obstacle is None and any(_has_video(request) for request in requests):
            self.sharing.obstacle = "prompts about videos are not shared"
        batches = self._split_by_kind(requests)
        readable = [request for request in batches[0] if _is_readable(request)] if batches else []
        if self.sharing.obstacle is None and readable:
            with self._method_active():
                self.sharing.check([r.images for r in readable], [r.question for r in readable])
            batches = self._split_by_kind(requests)
        return batches

    def _split_by_kind(self, requests: Sequence[AnswerRequest]) -> list[list[AnswerRequest]]:
        """Batches of requests answered alike, of as many images and options, with the same limit."""
        kinds: dict[tuple[int, int | None, int, bool], list[AnswerRequest]] = {}
        for request in requests:
            given = len(request.options), request.is_generated
            kinds.setdefault((len(request.images), request.max_new_tokens, *given), []).append(request)
        split = _split_by_image if self.sharing.obstacle is None else _split_by_length
        return [
            batch
            for (_, _, rows, _), alike in kinds.items()
            for batch in split(alike, max(1, self.batch_size // max(1, rows)))
        ]

    def answer(self, batch: Sequence[AnswerRequest]) -> Iterator[BatchAnswers]:
        """The answers to a batch of `make_batches`, in one or more parts.

        A batch that fails is halved until the failing request is alone; that one becomes an error. When
        memory runs out, batches stay small from then on.
        """
        size = max(1, min(self.batch_size, len(batch)))
        for start in range(0, len(batch), size):
            yield from self._answer_or_halve(batch[start : start + size])

    def _answer_or_halve(self, requests: Sequence[AnswerRequest]) -> Iterator[BatchAnswers]:
        failure: str | None = None
        counter, out_of_memory = TokenCounter(), False
        prefix_rows = self.sharing.prefix_rows
        try:
            with self._method_active() as ask, measure_cost(self.gaze) as cost:
                answers = self._answer_texts(ask, requests, counter)
        except Exception as error:  # one request must not end the others, whatever the model raises
            failure = error_text(error)
            if out_of_memory := _is_out_of_memory(error):
                self.batch_size = max(1, len(requests) // 2)
        if failure is None:
            cost.answers = len(requests)
            cost.rows -= self.sharing.prefix_rows - prefix_rows
            cost.tokens = len(requests) * (counter.count or self._longest_answer(answers, requests[0]))
            yield BatchAnswers({r.key: a for r, a in zip(requests, answers, strict=True)}, {}, cost)
            return
        if out_of_memory:  # here and not above: while it is handled, the exception holds the tensors
            clear_device_cache(garbage_collection=True)
        if len(requests) == 1:
            yield BatchAnswers({}, {requests[0].key: failure}, Cost())
            return
        half = len(requests) // 2
        yield from self._answer_or_halve(requests[:half])
        yield from self._answer_or_halve(requests[half:])

    def _answer_texts(
        self, ask: Callable[..., list[str]], requests: Sequence[AnswerRequest], counter: TokenCounter
    ) -> list[str]:
        images, prompts = [request.images for request in requests], [request.question for request in requests]
        if not requests[0].is_generated:
            ranking.check_method(self.condition.method)
            if texts := [request.continuation for request in requests if request.continuation]:
                return ranking.log_probabilities(self.gaze, images, prompts, texts, counter)
            choices = [request.options for request in requests]
            return ranking.most_likely_options(self.gaze, images, prompts, choices, counter)
        options = dict(self.condition.generate_kwargs)
        if (limit := self.condition.token_limit(requests[0])) is not None:
            options["max_new_tokens"] = limit
        if self.condition.is_sampled:
            options = sampling_options(options, [request.key for request in requests], self.condition.seed)
        if isinstance(getattr(self.gaze, "model", None), torch.nn.Module) and not self._is_multi_pass:
            options["stopping_criteria"] = [counter]
        if self.sharing.obstacle is None:
            return self.sharing.answer(images, prompts, options)
        return ask([list(entry) for entry in images], prompts, batch_size=len(prompts), **options)

    @contextmanager
    def _method_active(self) -> Iterator[Callable[..., list[str]]]:
        """`gaze.ask` under the method, which acts inside the forwards or runs several passes itself."""
        method: Method | None = self.condition.method
        if self._is_multi_pass:
            yield partial(self.gaze.ask, method=method)
        else:
            with nullcontext() if method is None else self.gaze.using(method):
                yield self.gaze.ask

    def _longest_answer(self, answers: Sequence[str], request: AnswerRequest) -> int:
        """Tokens of the longest answer with its end token, for multi-pass methods, which are not counted."""
        tokenizer = getattr(getattr(self.gaze, "reader", None), "tokenizer", None)
        if tokenizer is None:
            return 0
        lengths = [len(tokenizer(f"x {answer}")["input_ids"]) for answer in answers]
        longest = max(lengths) - len(tokenizer("x")["input_ids"]) + 1
        return min(longest, self.condition.token_limit(request) or longest)


def error_text(error: Exception) -> str:
    """What the journal says of an error: the message of one of ours, else the class and the message."""
    return str(error) if isinstance(error, RegazeError) else f"{type(error).__name__}: {error}"


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error)


def readable_few(requests: Sequence[AnswerRequest]) -> list[AnswerRequest]:
    """Of the first request, the one in the middle and the last those whose images can be read."""
    indices = dict.fromkeys((0, len(requests) // 2, len(requests) - 1)) if requests else {}
    return [requests[index] for index in indices if _is_readable(requests[index])]


def _is_readable(request: AnswerRequest) -> bool:
    try:
        return all(
            open_video(image) if isinstance(image, Video) else open_image(image) for image in request.images
        )
    except InputError:
        return False


def _has_video(request: AnswerRequest) -> bool:
    return any(isinstance(image, Video) for image in request.images)


def _split_by_length(requests: Sequence[AnswerRequest], size: int) -> list[list[AnswerRequest]]:
    """Prompts of similar length need the least padding.

    The longest come first: memory runs out at the beginning or not at all.
    """
    ordered = sorted(requests, key=lambda request: len(request.prompt), reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _split_by_image(requests: Sequence[AnswerRequest], size: int) -> list[list[AnswerRequest]]:
    """Requests about the same images share a batch as far as they fit; a batch may hold several groups."""
    groups: dict[Any, list[AnswerRequest]] = {}
    for request in requests:
        groups.setdefault(request.images, []).append(request)
    chunks = [chunk for group in groups.values() for chunk in _split_by_length(group, size)]
    chunks.sort(key=lambda chunk: (len(chunk), len(chunk[0].prompt)), reverse=True)
    batches: list[list[AnswerRequest]] = []
    for chunk in chunks:
        if batches and len(batches[-1]) + len(chunk) <= size:
            batches[-1] += chunk
        else:
            batches.append(chunk)
    return batches
