"""The write-ahead journal of a run: answers are on disk before the next batch is generated.

One line is one batch: its answers, the errors of requests that failed, the cost, and a checksum of all that,
so that a line that was changed is noticed (lines of earlier versions have none). A line is appended in one
piece, and it is on disk when `append` returns, so a process that is killed at any moment loses at most
the batch in flight. An incomplete last line is not read, and it is cut off before the next line is written.
Every process of a run writes its own journal and reads all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock

from regaze.errors import InputError
from regaze.eval.files import output_errors
from regaze.reading import read_bytes
from regaze.writing import LineLog, require_regular, sync_folder

PATTERN = "journal.*.jsonl"
LOCK = ".lock"
#: of a journal, which holds every answer of a run
_MAX_BYTES = 2**33
#: what a line ends in: the checksum of the object as it is without it
_CHECKSUM = b', "checksum": "%s"'
_CHECKSUM_AT_END = re.compile(rb', "checksum": "([^"]*)"\}$')


@dataclass(frozen=True)
class Batch:
    """Requests that were answered at once.

    Attributes:
        condition: label of the method. benchmark: its name. Both are for people: answers are found by their
            keys alone.
        answers: by the key of the request.
        errors: by the key of the request, for requests that failed.
        cost: the fields of `Cost`. sharing: None where prefixes were shared, else the reason why not.
    """

    condition: str
    benchmark: str
    answers: Mapping[str, str]
    errors: Mapping[str, str] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    sharing: str | None = None


class Journal:
    """Appends batches to journal.RANK.jsonl in a folder.

    Raises:
        InputError: the file cannot be written (from `append`, too: a disk may fill up).
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self._folder = folder
        with output_errors(folder):
            self._log = LineLog(folder / PATTERN.replace("*", str(rank)))

    def append(self, batch: Batch) -> None:
        """Write a line and wait until it is on disk."""
        text = json.dumps(asdict(batch), ensure_ascii=False, allow_nan=False).encode(errors="surrogatepass")
        with output_errors(self._folder):
            self._log.append(text[:-1] + _CHECKSUM % _checksum(text) + b"}")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._log.close()


def read_batches(folder: Path) -> Iterator[Batch]:
    """Every batch of every journal in `folder`.

    Raises:
        InputError: a journal that cannot be read, or a complete line that is not a batch or was changed;
            names the line.
    """
    for path in sorted(folder.glob(PATTERN)):
        content = read_bytes(path, max_bytes=_MAX_BYTES)
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                yield _parse(line)
            except (ValueError, TypeError, RecursionError) as error:
                reason = str(error).split("\n")[0]
                raise InputError(
                    f"{path}:{number} is damaged ({reason}); remove the line to ask its questions again"
                ) from error


def _parse(line: bytes) -> Batch:
    """The batch of a line. Raises ValueError or TypeError for one that is none, or that was changed."""
    if match := _CHECKSUM_AT_END.search(line):
        line = line[: match.start()] + b"}"
        if match[1].decode() != _checksum(line).decode():
            raise ValueError("its checksum does not fit: it was changed")
    batch = Batch(**json.loads(line.decode(errors="surrogatepass")))
    texts = [batch.condition, batch.benchmark, batch.sharing or ""]
    for mapping in (batch.answers, batch.errors):
        if not isinstance(mapping, dict):
            raise TypeError("answers and errors must be objects")
        texts += mapping.values()
    if not all(isinstance(text, str) for text in texts) or not isinstance(batch.cost, dict):
        raise TypeError("a field has another type")
    return batch


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create the folder if needed and lock it for this process.

    The operating system owns the lock: it is released when the process ends, however that happens. A folder
    that was made for this and is still empty at the end is removed.

    Raises:
        InputError: another process holds the lock, or the folder cannot be written.
    """
    with output_errors(folder):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        require_regular(folder / LOCK)
        (folder / LOCK).touch()  # a folder that cannot be written fails here, with its own reason
        lock = filelock.FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except NotImplementedError as error:
            raise InputError(f"output folder {folder} cannot be used: {error}") from error
        except filelock.Timeout:
            raise InputError(
                f"output folder {folder} is being written by another process: wait for its end, or give "
                "--output another folder"
            ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            if is_new and os.listdir(folder) == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.release()
