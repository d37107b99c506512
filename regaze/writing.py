"""Write files so that nothing is lost and nobody reads half of one, however the process ends.

`replace_file` and `replacing` exchange a whole file in one step; `LineLog` appends lines. Both return when
the content, and the file's name in its folder, are on disk. Only regular files are written: whatever else has
the name (a folder, a pipe, a device) is left alone and named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EBADF, EINVAL, ENOTSUP
from pathlib import Path

from regaze.errors import InputError
from regaze.reading import StrPath, kind_of

#: Provisional names of files that are being written: what a process that ends at once has to remove.
unfinished: set[str] = set()

_CHUNK = 2**16
_BINARY = getattr(os, "O_BINARY", 0)
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # for the other end of a pipe


def replace_file(path: StrPath, content: str | bytes) -> None:
    """Write a file in one step.

    Raises:
        InputError: It cannot be written; an earlier file of that name is as it was.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with replacing(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)


@contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """A provisional path with the same ending, for code that writes by itself.

    The file of that path has the name `path` after the block; after an exception it is gone. Where `path` is
    a link, the file that it leads to is replaced.

    Raises:
        InputError: The file cannot be written.
    """
    with _naming(path):
        require_regular(path)
        target = Path(os.path.realpath(path))
        partial = target.with_name(f".{target.stem}.partial{target.suffix}")
        unfinished.add(str(partial))
        try:
            _remove(partial)
            yield partial
            _sync(partial, os.O_RDWR | _BINARY)
            os.replace(partial, target)
        except BaseException:
            with suppress(OSError):
                _remove(partial)
            raise
        finally:
            unfinished.discard(str(partial))
        sync_folder(target.parent)


def make_folder(path: StrPath) -> Path:
    """Make a folder and those above it that are missing. Raises InputError where that cannot be done."""
    folder = Path(path)
    with _naming(folder):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
    return folder


def require_writable(path: StrPath) -> None:
    """Raise InputError where a file cannot be written, or a folder above it be made; nothing is made.

    For before the work whose result the file will hold. A disk may still be full by then.
    """
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)
    above = next((each for each in target.parents if os.path.lexists(each)), target.parent)
    if not above.is_dir():
        raise InputError(f"{os.fspath(path)} cannot be written: {above} is no folder")
    require_regular(target)
    for each in (above, target):
        if os.path.exists(each) and not os.access(each, os.W_OK):
            raise InputError(f"{os.fspath(path)} cannot be written: no permission to write {each}")


def require_regular(path: StrPath) -> None:
    """Raise InputError where something other than a regular file has this name."""
    path = os.fspath(path)
    try:
        kind = kind_of(os.stat(path).st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path} cannot be used: {error.strerror}") from error
    if kind is not None:
        raise InputError(f"{path} cannot be written: {kind} has that name; move it away")


def sync_folder(folder: StrPath) -> None:
    """Wait until the names in a folder are on disk, where the system can do that."""
    try:
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY) if hasattr(os, "O_DIRECTORY") else None
    except PermissionError:  # a folder that may be written and not be listed
        return
    except OSError as error:
        if error.errno not in (EBADF, EINVAL, ENOTSUP):  # the file system has no such call
            raise


class LineLog:
    """A file of lines that grows by whole lines, each of them on disk when `append` returns.

    A process that dies while it writes leaves an incomplete last line, which is cut off before the next one
    is written. One process at a time may have the log open.

    Attributes:
        torn: What stood behind the last whole line when the log was opened.

    Raises:
        InputError: Something other than a regular file has the name. OSError: it cannot be opened.
    """

    def __init__(self, path: StrPath) -> None:
        require_regular(path)
        is_new = not os.path.exists(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _BINARY | _NO_WAITING, 0o666)
        try:
            self._length, self.torn = _whole_lines(self._descriptor)
            if is_new:
                sync_folder(os.path.dirname(path) or os.curdir)
        except BaseException:
            self.close()
            raise
        self._whole = not self.torn

    def append(self, line: bytes) -> None:
        """Write a line, which is given without its end. Raises OSError; the file then ends as before."""
        if not self._whole:
            os.ftruncate(self._descriptor, self._length)
        self._whole = False
        try:
            _write_all(self._descriptor, line + b"\n")
            os.fsync(self._descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._length)
            raise
        self._length += len(line) + 1
        self._whole = True

    def close(self) -> None:
        """Close the file; an error is no loss, since every line is on disk."""
        with suppress(OSError):
            os.close(self._descriptor)

    def __enter__(self) -> LineLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _whole_lines(descriptor: int) -> tuple[int, bytes]:
    """The bytes up to the end of the last whole line, and what stands behind it."""
    start, torn = os.lseek(descriptor, 0, os.SEEK_END), b""
    while start and b"\n" not in torn:
        step = min(start, _CHUNK)
        start -= step
        os.lseek(descriptor, start, os.SEEK_SET)
        torn = os.read(descriptor, step) + torn
    end = torn.rfind(b"\n") + 1
    return start + end, torn[end:]


def _write_all(descriptor: int, data: bytes) -> None:
    """`os.write` may write a part, on a disk that is nearly full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync(path: StrPath, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


@contextmanager
def _naming(path: StrPath) -> Iterator[None]:
    """Turn an OSError inside the block into an InputError that names the file."""
    path = os.fspath(path)
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
