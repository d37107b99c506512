"""What is asked of a model, and by what an answer is known again.

An answer is kept under the hash of all that decides it: the model as it lies in memory, the method and its
parameters, the prompt, the bytes of the images, what `generate` is given, and the versions of the libraries.
Neither its batch nor the benchmark that asks belongs to it. Whatever differs in one of these is another
request, so that a run never reads the answers of another configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from regaze.errors import BadParameterError
from regaze.eval.benchmarks.common.base import Benchmark, Item
from regaze.eval.run.results import versions


class Method(Protocol):
    """What the runner needs of a method."""

    def to_dict(self) -> dict[str, Any]:
        """Its name and parameters as JSON values."""


@dataclass(frozen=True)
class Setting:
    """All that decides an answer beside the question.

    Attributes:
        model: `identity.fingerprint` of it.
        method: None for the plain model.
        options: what `generate` is given.
        seed: of sampled answers.
    """

    model: str
    method: Method | None
    options: Mapping[str, Any]
    seed: int

    @property
    def sampled(self) -> bool:
        """Whether answers are drawn at random."""
        return bool(self.options.get("do_sample"))

    def digest(self) -> str:
        """Hash of the setting. Raises BadParameterError for an option that is no JSON value."""
        method = None if self.method is None else self.method.to_dict()
        seed = self.seed if self.sampled else None
        try:
            return digest([self.model, method, dict(self.options), seed, versions()])
        except (TypeError, ValueError) as error:
            raise BadParameterError(
                f"options of generate must be JSON values, so that answers can be told apart: {error}"
            ) from error


@dataclass(frozen=True)
class Request:
    """One prompt about some images, to be answered once however many items ask it.

    Attributes:
        key: hash of all that decides the answer.
        max_new_tokens: the longest answer; None leaves it to the setting's options.
        options: what to choose from instead of generating.
    """

    key: str
    images: tuple[Path, ...]
    prompt: str
    max_new_tokens: int | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Questions:
    """A benchmark's items as requests under one setting.

    Attributes:
        requests: by key, in the order in which items first ask them.
        of_item: per item the key of its request; None where the item cannot be asked.
        failed: {item: reason} for those.
    """

    requests: Mapping[str, Request]
    of_item: Sequence[str | None]
    failed: Mapping[int, str]


class Pictures:
    """Hashes of image files, each read once."""

    def __init__(self) -> None:
        self._known: dict[Path, str | OSError] = {}

    def digest(self, path: Path) -> str:
        """Hash of the file's bytes. Raises OSError where it cannot be read."""
        if path not in self._known:
            try:
                self._known[path] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                self._known[path] = error
        known = self._known[path]
        if isinstance(known, OSError):
            raise known
        return known


def questions(benchmark: Benchmark, setting: Setting, pictures: Pictures) -> Questions:
    """The requests of a benchmark's items; items that ask the same share one."""
    common = setting.digest()
    requests: dict[str, Request] = {}
    of_item: list[str | None] = []
    failed: dict[int, str] = {}
    for index, item in enumerate(benchmark.items):
        try:
            images = [pictures.digest(image) for image in item.images]
        except OSError as error:
            failed[index] = _unreadable(item, error)
            of_item.append(None)
            continue
        prompt = benchmark.prompt(item)
        choice = [item.options] if item.options else []
        key = digest([common, prompt, images, item.max_new_tokens, *choice])
        requests.setdefault(key, Request(key, item.images, prompt, item.max_new_tokens, item.options))
        of_item.append(key)
    return Questions(requests, of_item, failed)


def digest(value: Any) -> str:
    """Hash of a JSON value, 32 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _unreadable(item: Item, error: OSError) -> str:
    asked = f" (asked for by {item.source})" if item.source else ""
    return f"image {error.filename} cannot be read: {error.strerror}{asked}"
