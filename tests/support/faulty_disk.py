"""A disk on which a call fails: the n-th of those that touch a folder, or all from there on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: What fails. Closing and removing work on a full disk, but a close may report what went wrong before.
CALLS = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "ftruncate")
FULL = ("open", "write", "fsync", "replace", "mkdir")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


class FaultyDisk:
    """Counts the calls below a folder, and lets one of them fail.

    Attributes:
        count: calls so far.
    """

    def __init__(self, folder: Path, at: int | None, code: int, stays: bool) -> None:
        self.folder, self.at, self.code, self.stays = str(folder), at, code, stays
        self.count = 0
        self.descriptors: set[int] = set()

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            target = arguments[0]
            is_ours = target in self.descriptors if isinstance(target, int) else self.holds(target)
            if not is_ours:
                return real(*arguments, **options)
            self.count += 1
            is_full = self.stays and self.at is not None and self.count > self.at and name in FULL
            if self.count == self.at or is_full:
                self.fail(name, real, arguments)
            result = real(*arguments, **options)
            if name == "open":
                self.descriptors.add(result)
            elif name == "close":
                self.descriptors.discard(target)
            return result

        return call

    def holds(self, path: Any) -> bool:
        return os.fspath(path).startswith(self.folder)

    def fail(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if name == "close":  # it is closed all the same
            self.descriptors.discard(arguments[0])
            real(*arguments)
        if name == "write":  # a half is written
            real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        raise OSError(self.code, os.strerror(self.code))


@contextmanager
def faulty_disk(folder: Path, at: int | None = None, stays: bool = False) -> Iterator[FaultyDisk]:
    """The block sees a disk whose call number `at` fails (None: it only counts), by an error of its turn."""
    disk = FaultyDisk(folder, at, ERRORS[(at or 0) % len(ERRORS)], stays)
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, disk.wrap(name, getattr(os, name)))
        yield disk
