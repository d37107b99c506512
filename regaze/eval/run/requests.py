"""Requests for answers, and the key under which an answer is stored.

The key is the hash of everything that decides an answer: the model as it is in memory, the method with its
parameters, the prompt, the bytes of the images, the arguments of `generate`, the versions of the libraries,
and the attention backend. The batch and the benchmark are not part of it. A change in any of these makes
another request, so a run never reads the answers of another configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from regaze.errors import BadParameterError, InputError
from regaze.eval.benchmarks.common.base import Benchmark, Item
from regaze.eval.benchmarks.common.earlier import pictures_of, plain_messages
from regaze.eval.run.results import versions
from regaze.reading import hash_file
from regaze.toolkit.prompts.conversation import Conversation, Message
from regaze.toolkit.prompts.video import Video


class Method(Protocol):
    """What the runner needs of a method."""

    def to_dict(self) -> dict[str, Any]:
        """Its name and parameters as JSON values."""


@dataclass(frozen=True)
class Condition:
    """Everything that decides an answer besides the question.

    Attributes:
        model: `fingerprint.model_fingerprint` of the model.
        method: None for the plain model.
        generate_kwargs: arguments of `generate`.
        seed: of sampled answers.
        thinking_tokens: what an answer may be longer than its limit, see `EvalConfig`.
    """

    model: str
    method: Method | None
    generate_kwargs: Mapping[str, Any]
    seed: int
    thinking_tokens: int = 0

    @property
    def is_sampled(self) -> bool:
        """Whether answers are drawn at random."""
        return bool(self.generate_kwargs.get("do_sample"))

    def digest(self) -> str:
        """Hash of the condition. Raises BadParameterError for an argument that is not a JSON value."""
        method = None if self.method is None else self.method.to_dict()
        seed = self.seed if self.is_sampled else None
        try:
            parts = [self.model, method, dict(self.generate_kwargs), seed, versions()]
            return digest([*parts, *([self.thinking_tokens] if self.thinking_tokens else [])])
        except (TypeError, ValueError) as error:
            raise BadParameterError(
                f"options of generate must be JSON values, so that answers can be told apart: {error}"
            ) from error

    def token_limit(self, request: AnswerRequest) -> int | None:
        """The most tokens of an answer, thinking included; None where only `generate` knows it.

        Raises:
            BadParameterError: thinking tokens, and no limit to add them to.
        """
        limit = request.max_new_tokens or self.generate_kwargs.get("max_new_tokens")
        if self.thinking_tokens and limit is None:
            raise BadParameterError(
                f"thinking_tokens={self.thinking_tokens} adds to max_new_tokens: give that, too"
            )
        return None if limit is None else limit + self.thinking_tokens


@dataclass(frozen=True)
class AnswerRequest:
    """A prompt about some images, answered once however many items ask it.

    Attributes:
        key: hash of everything that decides the answer.
        images: in the order in which they are shown, those of earlier messages first; a video is one of them.
        max_new_tokens: limit of this answer; None leaves it to the condition.
        options: answers to choose from; where there are any, nothing is generated.
        earlier: messages before the prompt, with places for their images.
        continuation: a text whose log-probability as the answer is wanted; nothing is generated then, either.
    """

    key: str
    images: tuple[Path | Video, ...]
    prompt: str
    max_new_tokens: int | None = None
    options: tuple[str, ...] = ()
    earlier: tuple[Message, ...] = ()
    continuation: str = ""

    @property
    def is_generated(self) -> bool:
        """Whether the answer is a text of the model's."""
        return not (self.options or self.continuation)

    @property
    def question(self) -> str | Conversation:
        """The prompt, with the messages before it."""
        if not self.earlier:
            return self.prompt
        own = len(self.images) - sum(len(message.shown) for message in self.earlier)
        return Conversation.of(self.prompt, own, earlier=self.earlier)


@dataclass(frozen=True)
class BenchmarkRequests:
    """The items of a benchmark as requests under one condition.

    Attributes:
        requests: by key, in the order of the first item with each key.
        item_keys: the key of each item; None for an item with an unreadable image.
        unreadable: {item index: reason} of those items.
    """

    requests: Mapping[str, AnswerRequest]
    item_keys: Sequence[str | None]
    unreadable: Mapping[int, str]


class ImageHashes:
    """Hashes of images and videos, each file read once."""

    def __init__(self) -> None:
        self._hashes: dict[Path | Video, str | InputError] = {}

    def digest(self, image: Path | Video) -> str:
        """Hash of the file's bytes. Raises InputError when it cannot be read."""
        if image not in self._hashes:
            try:
                self._hashes[image] = _digest_file(image)
            except InputError as error:
                self._hashes[image] = error
        found = self._hashes[image]
        if isinstance(found, InputError):
            raise found
        return found


def build_requests(benchmark: Benchmark, condition: Condition, hashes: ImageHashes) -> BenchmarkRequests:
    """The requests of a benchmark's items; items with the same question share a request."""
    common = condition.digest()
    requests: dict[str, AnswerRequest] = {}
    item_keys: list[str | None] = []
    unreadable: dict[int, str] = {}
    for index, item in enumerate(benchmark.items):
        shown = (*pictures_of(item.earlier), *item.media)
        try:
            images = [hashes.digest(image) for image in shown]
        except InputError as error:
            unreadable[index] = _reason(item, error)
            item_keys.append(None)
            continue
        prompt = benchmark.prompt(item)
        options = [item.options] if item.options else []
        before = [plain_messages(item.earlier)] if item.earlier else []
        forced = [{"continuation": item.continuation}] if item.continuation else []
        key = digest([common, prompt, images, item.max_new_tokens, *options, *before, *forced])
        if key not in requests:
            earlier = tuple(message.with_places() for message in item.earlier)
            limit, choices = item.max_new_tokens, item.options
            requests[key] = AnswerRequest(key, shown, prompt, limit, choices, earlier, item.continuation)
        item_keys.append(key)
    return BenchmarkRequests(requests, item_keys, unreadable)


def _digest_file(image: Path | Video) -> str:
    return digest(image.digest()) if isinstance(image, Video) else hash_file(image, "image ")


def digest(value: Any) -> str:
    """Hash of a JSON value, 32 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _reason(item: Item, error: InputError) -> str:
    return f"{error} (asked for by {item.source})" if item.source else str(error)
