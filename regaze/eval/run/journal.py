"""The write-ahead journal of a run: answers are on disk before the next batch is asked.

A line is a batch: its answers, or the errors in place of them, and what it cost. A line is appended in one
piece and the disk has it when `append` returns, so that a process killed at any moment loses at most the
batch in flight. What is left of a line then has no end, is not read, and is cut off before the next is
written. Every process of a run writes a journal of its own and reads all of them.
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
    """What was asked at once.

    Attributes:
        condition: the label of the method it was asked under, and benchmark: who asked. For people: answers
            are found by their keys alone.
        answers: by the key of the request. errors: likewise, for requests that failed.
        cost: see `cost.Cost`. sharing: None where prefixes were shared, else why not.
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
            self._file.truncate(_whole(path))

    def append(self, batch: Batch) -> None:
        """Write a line and wait until the disk has it."""
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


def batches(folder: Path) -> Iterator[Batch]:
    """Every batch of every journal in `folder`.

    Raises:
        InputError: a line that is none of a journal; one without an end is none yet.
    """
    for path in sorted(folder.glob(PATTERN)):
        content = path.read_bytes()
        for number, line in enumerate(content[: _whole(path)].splitlines(), start=1):
            try:
                yield Batch(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{path}:{number} is damaged ({error}); remove the line to ask its questions again"
                ) from error


def _whole(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """The folder, made when it is not there, for this process alone.

    The lock is the operating system's: it goes with the process, however that ends.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()  # what cannot be written shows here, as what it is
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
