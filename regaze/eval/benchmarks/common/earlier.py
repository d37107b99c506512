"""Messages before a question: few-shot examples for all questions of a benchmark, or the turns before one.

A file holds them in the form of chat templates (`toolkit.prompts.conversation`), as a JSON array or a line
each; it names its pictures by paths from its own folder or, where these are allowed, by URLs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark, with_items
from regaze.eval.files import cache_folder, read_records
from regaze.reading import StrPath
from regaze.toolkit.prompts.conversation import Message, Shown, parse_messages
from regaze.toolkit.prompts.images import open_image
from regaze.toolkit.prompts.remote import fetch, is_url, shown
from regaze.writing import make_folder, replace_file


def read_few_shot(path: StrPath, allow_urls: bool = False) -> tuple[Message, ...]:
    """The examples in a file.

    Raises:
        InputError: they are no messages, a picture cannot be read, or the last is not the assistant's.
    """
    given = [value for _, value in read_records(path, "few-shot file ")]
    listed = given[0] if len(given) == 1 and isinstance(given[0], list) else given
    messages = read_earlier(listed, Path(path).parent, str(path), allow_urls)
    for picture in pictures_of(messages):  # with one that cannot be read, every question would fail
        _check_picture(picture, str(path))
    return messages


def read_earlier(given: Any, folder: Path, source: str, allow_urls: bool = False) -> tuple[Message, ...]:
    """Messages with the files of their pictures, which lie in `folder`.

    Raises:
        InputError: as `read_few_shot`.
    """
    messages = parse_messages(given, source)
    if messages and messages[-1].role != "assistant":
        raise InputError(f"{source}: messages before a question end with one of the assistant")
    return tuple(
        replace(message, parts=tuple(_located(p, folder, source, allow_urls) for p in message.parts))
        for message in messages
    )


def _located(part: Any, folder: Path, source: str, allow_urls: bool) -> Any:
    if isinstance(part, str):
        return part
    if not isinstance(part.medium, str):
        raise InputError(f"{source}: a picture in a file is named by its path or its URL")
    return Shown(picture_file(part.medium, folder, source, allow_urls))


def picture_file(name: str, folder: Path, source: str, allow_urls: bool) -> Path:
    """The file of a picture: in `folder`, or downloaded into the cache. Raises InputError naming `source`."""
    if not is_url(name):
        return folder / name
    if not allow_urls:
        raise InputError(f"{source}: {shown(name)} is a URL: --allow-urls lets it be fetched")
    place = cache_folder() / "pictures" / hashlib.sha256(name.encode()).hexdigest()[:32]
    if not place.is_file():
        try:
            content = fetch(name)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        _check_picture(content, source)  # nothing but pictures is kept
        make_folder(place.parent)
        replace_file(place, content)
    return place


def _check_picture(picture: Any, source: str) -> None:
    try:
        open_image(picture)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def with_few_shot(benchmark: Benchmark, messages: Sequence[Message]) -> Benchmark:
    """The benchmark with these messages before every question."""
    items = (replace(item, earlier=(*messages, *item.earlier)) for item in benchmark.items)
    return with_items(benchmark, items)


def plain_messages(messages: Sequence[Message]) -> list[Any]:
    """Messages as JSON values; a picture is a place."""
    return [[m.role, [part if isinstance(part, str) else None for part in m.parts]] for m in messages]


def pictures_of(messages: Sequence[Message]) -> tuple[Any, ...]:
    """The files of the pictures, in their order."""
    return tuple(each.medium for message in messages for each in message.shown)


def describe_earlier(benchmark: Benchmark) -> dict[str, Any]:
    """Number and hash of the messages before the questions, for results; {} where there are none."""
    counts = [len(item.earlier) for item in benchmark.items]
    if not any(counts):
        return {}
    texts = [
        [plain_messages(item.earlier), [image.name for image in pictures_of(item.earlier)]]
        for item in benchmark.items
    ]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return {"earlier": {"fewest": min(counts), "most": max(counts), "sha256": digest}}
