"""Read data files with errors that name the file and the line, write output files in one step.

Every reader also takes a file that is gzipped.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regaze.errors import InputError

Record = tuple[int, Any]


def cache_folder() -> Path:
    """Where downloads are kept: $REGAZE_CACHE, or regaze in the user's cache folder."""
    chosen = os.environ.get("REGAZE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regaze"


def read_text(path: Path, what: str = "") -> str:
    """The text of a file (UTF-8, with or without a byte order mark).

    Args:
        what: put in front of the path in the error ("questions file ").

    Raises:
        InputError: it cannot be read or is no text.
    """
    try:
        data = Path(path).read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None)
        if reason is None:
            reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "damaged gzip file"
        raise InputError(f"{what}{path} cannot be read: {reason}") from error


def read_json(path: Path) -> Any:
    """The one JSON value that a file holds. Raises InputError naming file and line."""
    return _parse(read_text(path), path, 1)


def read_records(path: Path, what: str = "") -> list[Record]:
    """(line, value) of every JSON line, or of every element of one JSON array, however it is laid out.

    Raises:
        InputError: no such file, or not JSON; names the file and the line.
    """
    text = read_text(path, what)
    return list(_array(text, path) if text.lstrip().startswith("[") else _lines(text, path))


def read_table(
    path: Path, columns: Sequence[str], *, delimiter: str = ","
) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a table with a heading line.

    Args:
        columns: headings that must be there, however they are capitalised; rows come under these names.

    Raises:
        InputError: no such file, a heading that is missing, a row with too few or too many fields.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        headings = [heading.strip().lower() for heading in next(reader)]
    except StopIteration:
        raise InputError(f"{path} is empty; expected the columns {', '.join(columns)}") from None
    absent = [column for column in columns if column.lower() not in headings]
    if absent:
        raise InputError(f"{path}:1: no column {', '.join(absent)}; there are {', '.join(headings)}")
    wanted = {column: headings.index(column.lower()) for column in columns}
    rows = []
    for row in reader:
        if not row:
            continue
        if len(row) != len(headings):
            raise InputError(f"{path}:{reader.line_num}: {len(row)} fields, expected {len(headings)}")
        rows.append((reader.line_num, {column: row[place] for column, place in wanted.items()}))
    return rows


def field(record: Any, key: str, kind: type | tuple[type, ...], source: str) -> Any:
    """`record[key]`, checked. Raises InputError naming the source when it is absent or of another kind."""
    if not isinstance(record, dict):
        raise InputError(f"{source}: expected an object with {key!r}, got {type(record).__name__}")
    value = record.get(key)
    if not isinstance(value, kind) or (kind is str and not str(value).strip()):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join("a non-empty string" if each is str else each.__name__ for each in kinds)
        raise InputError(f"{source}: {key!r} must be {wanted}, got {value!r}")
    return value


def need_folder(path: Path, what: str) -> Path:
    """`path`, when it is a folder. Raises InputError saying what was looked for."""
    if not Path(path).is_dir():
        raise InputError(f"{what} {path} does not exist or is not a folder")
    return Path(path)


def find_file(folder: Path, *names: str) -> Path:
    """The first of these files that the folder has, itself or gzipped. Raises InputError naming them all."""
    for name in names:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise InputError(f"{folder} has no {' or '.join(names)}")


@contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an InputError that names the output folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be used: {error.strerror or error}") from error


def replace_file(path: Path, text: str) -> None:
    """Write a file in one step, so that no reader sees half of it.

    Raises:
        InputError: the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    with output_errors(path.parent):
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def sha256(path: Path) -> str:
    """Hash of the file as it was published: of what a ".gz" unpacks to."""
    data = Path(path).read_bytes()
    return hashlib.sha256(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).hexdigest()


def origin(*paths: Path) -> dict[str, str]:
    """{file name: hash}, for a benchmark's `describe`."""
    return {path.name.removesuffix(".gz"): sha256(path) for path in paths}


def _lines(text: str, path: Path) -> Iterator[Record]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            yield line, _parse(content, path, line)


def _array(text: str, path: Path) -> Iterator[Record]:
    _parse(text, path, 1)  # the whole must be one array; what follows only finds where its elements begin
    decoder = json.JSONDecoder()
    line, seen, offset = 1, 0, text.index("[") + 1
    while True:
        while text[offset] in " \t\r\n,":
            offset += 1
        if text[offset] == "]":
            return
        line, seen = line + text.count("\n", seen, offset), offset
        element, offset = decoder.raw_decode(text, offset)
        yield line, element


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"{path}:{line}: not valid JSON ({error.msg}, column {error.colno})") from error
