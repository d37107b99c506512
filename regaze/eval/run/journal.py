"""The write-ahead journal of a run: answers are on disk before the next batch is generated.

One line is one batch: its answers, the errors of requests that failed, and the cost. A line is appended in
one piece, and it is on disk when `append` returns, so a process that is killed at any moment loses at most
the batch in flight. An incomplete last line is not read, and it is cut off before the next line is written.
Every process of a run writes its own journal and reads all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock

from regaze.errors import InputError
from regaze.eval.files import output_errors

PATTERN = "journal.*.jsonl"
LOCK = ".lock"


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
        path = folder / PATTERN.replace("*", str(rank))
        with output_errors(folder):
            self._file = path.open("ab")
            self._file.truncate(_complete_length(path))

    def append(self, batch: Batch) -> None:
        """Write a line and wait until it is on disk."""
        line = json.dumps(asdict(batch), ensure_ascii=False, allow_nan=False) + "\n"
        with output_errors(self._folder):
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_batches(folder: Path) -> Iterator[Batch]:
    """Every batch of every journal in `folder`.

    Raises:
        InputError: a complete line that is not a batch; names the line.
    """
    for path in sorted(folder.glob(PATTERN)):
        content = path.read_bytes()
        for number, line in enumerate(content[: _complete_length(path)].splitlines(), start=1):
            try:
                yield Batch(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{path}:{number} is damaged ({error}); remove the line to ask its questions again"
                ) from error


def _complete_length(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    return path.read_bytes().rfind(b"\n") + 1


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create the folder if needed and lock it for this process.

    The operating system owns the lock: it is released when the process ends, however that happens.

    Raises:
        InputError: another process holds the lock, or the folder cannot be written.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()  # a folder that cannot be written fails here, with its own reason
        lock = filelock.FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise InputError(
                f"output folder {folder} is being written by another process: wait for its end, or give "
                "--output another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()
