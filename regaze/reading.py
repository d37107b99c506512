"""Read text, JSON and YAML from files that may be damaged, hostile or no files at all.

Every reader takes regular files only (plain or gzipped, UTF-8 with or without a byte order mark), keeps its
limits on size, depth, digits, aliases and seconds, and reports whatever is wrong as one line with the file
and the line. The limits are the constants below; REGAZE_MAX_BYTES and REGAZE_MAX_SECONDS replace two of them.

A parser cannot be interrupted, so the limits on bytes and on the number of values keep it short: the slowest
files are measured by benchmarks/reader_limits.py.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import yaml

from regaze.errors import InputError

#: What every function of regaze takes for a path.
StrPath: TypeAlias = str | os.PathLike[str]

#: Bytes of a file, before and after decompression.
MAX_BYTES = 64 * 2**20
#: Bytes of files that are larger than any other: COCO's annotations.
LARGE_BYTES = 2**30
#: Seconds for reading `MAX_BYTES`; where more may be read, in proportion.
MAX_SECONDS = 10.0
#: Lines of a text, rows of a table, nested lists and objects, digits of an integer.
MAX_LINES = 1_000_000
MAX_DEPTH = 100
MAX_DIGITS = 100
#: Bytes and aliases of a YAML document; it describes options, and PyYAML is slow.
MAX_YAML_BYTES = 256 * 2**10
MAX_ALIASES = 10

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 2**20
#: Characters of a JSON text whose values cannot fill the memory.
_SHORT = 2**16
#: Bytes of the limit per list or object, per member of an object, and per value of JSON: Python needs many
#: times the text for them.
_BYTES_PER_SIGN = {"[": 64, "{": 64, ":": 64, ",": 16}
_FORBIDDEN = re.compile("[\x00-\x08\x0e-\x1f\ud800-\udfff]")
_FORBIDDEN_ESCAPE = re.compile(r"\\(?:b|u(?:00[01]|[dD][89a-fA-F]))")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG_INTEGER = re.compile(rf"(?<!\d)\d{{{MAX_DIGITS + 1}}}")
_Value = TypeVar("_Value")
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def cache_folder() -> Path:
    """Folder of all downloads: $REGAZE_CACHE, or "regaze" in the user's cache folder."""
    chosen = os.environ.get("REGAZE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regaze"


def read_bytes(path: StrPath, what: str = "", max_bytes: int | None = None) -> bytes:
    """The content of a regular file, unpacked where it is gzipped.

    Args:
        what: Put in front of the path in the error ("questions file ").
        max_bytes: Limit instead of `MAX_BYTES`; $REGAZE_MAX_BYTES allows more.

    Raises:
        InputError: It cannot be read, is no regular file, is a damaged gzip file, or exceeds a limit.
    """
    path = os.fspath(path)
    name, limit = f"{what}{path}", byte_limit(max_bytes)
    try:
        with open_regular(path, what) as opened:
            file = _Limited(opened, limit, name)
            if not opened.peek(2).startswith(_GZIP_MAGIC):
                return _read_chunks(file, limit, name)
            with gzip.GzipFile(fileobj=file) as unpacked:  # type: ignore[call-overload]
                return _read_chunks(unpacked, limit, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{name} cannot be read: damaged gzip file") from error
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def hash_file(path: StrPath, what: str = "", max_bytes: int = LARGE_BYTES) -> str:
    """SHA-256 of a regular file's bytes as they are. Raises InputError as `read_bytes`."""
    path = os.fspath(path)
    name, hashed = f"{what}{path}", hashlib.sha256()
    try:
        with open_regular(path, what) as opened:
            file = _Limited(opened, byte_limit(max_bytes), name)
            while chunk := file.read(_CHUNK):
                hashed.update(chunk)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    return hashed.hexdigest()


def read_text(path: StrPath, what: str = "", max_bytes: int | None = None) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        InputError: As `read_bytes`; it is not UTF-8, has too many lines or a control character; names the
            line.
    """
    path = os.fspath(path)
    data = read_bytes(path, what, max_bytes)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        hint = ", perhaps UTF-16; save it as UTF-8" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise InputError(f"{what}{path}:{line}: not UTF-8 text{hint}") from error
    if text.count("\n") > MAX_LINES:
        raise InputError(f"{what}{path} has more than {MAX_LINES} lines")
    if found := _FORBIDDEN.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise InputError(f"{what}{path}:{line}: {_name(found[0])} in the text")
    return text


def readable(text: str) -> str:
    r"""`text` with a `\u....` in the place of each character that `read_text` refuses."""
    return _FORBIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def parse_json(
    text: str,
    source: StrPath,
    first_line: int = 1,
    max_bytes: int | None = None,
    *,
    controls: bool = False,
) -> Any:
    """The value of a JSON text.

    Args:
        source: Named in errors.
        first_line: Number of the text's first line in the source.
        max_bytes: As for `read_bytes`; the number of values is limited in proportion.
        controls: Accept escaped control characters, which the answers of models may hold.

    Raises:
        InputError: It is not JSON, or exceeds a limit; names `source` and the line.
    """
    if len(text) > _SHORT:
        check_count(text, source, max_bytes)
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"{source}:{line}: not valid JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise InputError(f"{source}:{first_line}: nested deeper than {MAX_DEPTH} levels") from error
    except _TwiceError as error:
        raise InputError(f"{source}:{first_line}: {error}") from error
    except ValueError as error:  # of int()
        line = _line_of(_LONG_INTEGER, text, first_line)
        raise InputError(f"{source}:{line}: an integer of more than {MAX_DIGITS} digits") from error
    _check_value(value, text, source, first_line, _SURROGATE if controls else _FORBIDDEN)
    return value


class _TwiceError(ValueError):
    """An object that has a member twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in value if names.count(name) > 1)
        raise _TwiceError(f"{twice[:80]!r} occurs twice in one object")
    return value


def check_count(text: str, source: StrPath, max_bytes: int | None = None) -> None:
    """Raise InputError for JSON, or lines of it, with so many values that they would fill the memory."""
    limit = byte_limit(max_bytes)
    if any(text.count(sign) > limit // size for sign, size in _BYTES_PER_SIGN.items()):
        raise InputError(f"{source} has too many values to be read; set REGAZE_MAX_BYTES to read more")


def _check_value(value: Any, text: str, source: StrPath, first_line: int, forbidden: re.Pattern[str]) -> None:
    """Raise InputError for a parsed JSON text that is nested too deeply or holds what no text should."""
    escaped, long = _FORBIDDEN_ESCAPE.search(text), _LONG_INTEGER.search(text)
    for place in _leaves(value, f"{source}:{first_line}") if escaped or long else ():
        if isinstance(place, str) and (found := forbidden.search(place)):
            line = _line_of(_FORBIDDEN_ESCAPE, text, first_line)
            raise InputError(f"{source}:{line}: {_name(found[0])} in a text")
        if isinstance(place, int) and abs(place) >= 10**MAX_DIGITS:
            line = _line_of(_LONG_INTEGER, text, first_line)
            raise InputError(f"{source}:{line}: an integer of more than {MAX_DIGITS} digits")
    if not (escaped or long) and text.count("[") + text.count("{") > MAX_DEPTH:
        for _ in _levels(value, f"{source}:{first_line}"):
            pass


def parse_yaml(text: str, source: StrPath) -> Any:
    """The value of a YAML document of options.

    Raises:
        InputError: It is not YAML, has unknown tags, refers to itself or exceeds a limit; names `source` and
            the line.
    """
    if len(text) > MAX_YAML_BYTES:
        raise InputError(f"{source} is longer than {MAX_YAML_BYTES} bytes, too long for a file of options")
    if found := _FORBIDDEN.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise InputError(f"{source}:{line}: {_name(found[0])} in the text")
    try:
        _check_events(text, source)
        value = yaml.load(text, Loader=_OptionsLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = mark.line + 1 if mark is not None else 1
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{source}:{line}: not valid YAML ({problem})") from error
    except (ValueError, TypeError, OverflowError, AttributeError, LookupError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error
    for leaf in _leaves(value, source):
        if isinstance(leaf, str) and (found := _FORBIDDEN.search(leaf)):
            raise InputError(f"{source}: {_name(found[0])} in a text")
        if isinstance(leaf, int) and abs(leaf) >= 10**MAX_DIGITS:
            raise InputError(f"{source}: an integer of more than {MAX_DIGITS} digits")
    return value


class _OptionsLoader(_YAML_LOADER):
    """Refuses a mapping that has a key twice, of which PyYAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value[:80]!r} occurs twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _check_events(text: str, source: StrPath) -> None:
    """Raise InputError for a YAML document that is nested too deeply or has too many aliases."""
    depth = aliases = 0
    for event in yaml.parse(text, Loader=_YAML_LOADER):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise InputError(f"{source}:{line}: nested deeper than {MAX_DEPTH} levels")
        if aliases > MAX_ALIASES:
            raise InputError(f"{source}:{line}: more than {MAX_ALIASES} aliases")


def open_regular(path: StrPath, what: str = "") -> io.BufferedReader:
    """The file, opened without waiting for a pipe's other end.

    Raises:
        InputError: it is no regular file. OSError, ValueError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    kind = kind_of(os.fstat(descriptor).st_mode)
    if kind is None:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if kind == "a folder":
        raise InputError(f"{what}{path} cannot be read: Is a directory")
    raise InputError(f"{what}{path} cannot be read: it is {kind}; copy the data into a file")


def kind_of(mode: int) -> str | None:
    """What a file of this mode is; None for a regular one."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def timed(values: Iterable[_Value], name: str, size: int) -> Iterator[_Value]:
    """The values made of a file of `size` bytes. Raises InputError when they take too long."""
    clock = _Clock(name, size)
    for number, value in enumerate(values):
        if number % 1024 == 0:
            clock.check()
        yield value


class _Clock:
    """The time that the reading of a file may take."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._seconds = name, seconds_limit(size)
        self._end = time.monotonic() + self._seconds

    def check(self) -> None:
        if time.monotonic() > self._end:
            limit = f"{self._seconds:g} seconds"
            raise InputError(f"{self._name} took more than {limit}; set REGAZE_MAX_SECONDS to wait longer")


class _Limited:
    """A file that ends with an error after so many bytes, or when reading it has taken too long.

    `gzip` reads through it, too: a packed file can be long without any content.
    """

    def __init__(self, file: IO[bytes], limit: int, name: str) -> None:
        self._file, self._left, self._limit, self._name = file, limit, limit, name
        self._clock = _Clock(name, limit)

    def read(self, size: int) -> bytes:
        self._clock.check()
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _too_long(self._name, self._limit)
        return data


def _read_chunks(file: Any, limit: int, name: str) -> bytes:
    data = bytearray()
    while chunk := file.read(_CHUNK):
        data += chunk
        if len(data) > limit:
            raise _too_long(name, limit)
    return bytes(data)


def _too_long(name: str, limit: int) -> InputError:
    return InputError(f"{name} has more than {limit} bytes; set REGAZE_MAX_BYTES to read more")


def _unreadable(name: str, error: OSError | ValueError) -> InputError:
    """The error that says why; one of ours as it is."""
    if isinstance(error, InputError):
        return error
    return InputError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}")


def byte_limit(max_bytes: int | None = None) -> int:
    """Bytes that a file may have: `MAX_BYTES`, or `max_bytes` for a kind of file that is larger, or
    $REGAZE_MAX_BYTES, which only raises a limit of its own kind.
    """
    limit = int(limit_from_environment("REGAZE_MAX_BYTES", max_bytes or MAX_BYTES))
    return max(limit, max_bytes or 0)


def seconds_limit(max_bytes: int) -> float:
    """Seconds for reading so many bytes: $REGAZE_MAX_SECONDS or, in proportion, `MAX_SECONDS`."""
    return limit_from_environment("REGAZE_MAX_SECONDS", MAX_SECONDS * max(1.0, max_bytes / MAX_BYTES))


def limit_from_environment(name: str, default: float) -> float:
    """A limit that the environment may replace. Raises InputError unless it is a number above 0."""
    text = os.environ.get(name)
    try:
        value = float(text) if text else float(default)
    except ValueError:
        value = -1.0
    if not 0 < value < 2**62:
        raise InputError(f"{name}={text}: expected a number above 0")
    return value


def _levels(value: Any, source: StrPath) -> Iterator[list[Any]]:
    """The containers of a value, level by level. Raises InputError below `MAX_DEPTH` levels."""
    level, depth = [value] if isinstance(value, (dict, list)) else [], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise InputError(f"{source}: nested deeper than {MAX_DEPTH} levels")
        yield level
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, (dict, list))
        ]


def _leaves(value: Any, source: StrPath) -> Iterator[Any]:
    """Everything in a value that is no container, keys of objects too."""
    if not isinstance(value, (dict, list)):
        yield value
    for level in _levels(value, source):
        for each in level:
            if isinstance(each, dict):
                yield from each
            yield from each.values() if isinstance(each, dict) else each


def _line_of(pattern: re.Pattern[str], text: str, first_line: int) -> int:
    found = pattern.search(text)
    return first_line + (text.count("\n", 0, found.start()) if found else 0)


def _name(character: str) -> str:
    code = f"U+{ord(character):04X}"
    if "\ud800" <= character <= "\udfff":
        return f"half a surrogate pair ({code})"
    return "a NUL character (U+0000)" if character == "\0" else f"the control character {code}"
