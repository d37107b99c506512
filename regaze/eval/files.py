"""Read data files with errors that name the file and the line, write output files in one step.

Every reader also takes a gzipped file.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regaze.errors import InputError

_GZIP_MAGIC = b"\x1f\x8b"

#: (line, value)
Record = tuple[int, Any]


def cache_folder() -> Path:
    """Folder of all downloads: $REGAZE_CACHE, or "regaze" in the user's cache folder."""
    chosen = os.environ.get("REGAZE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regaze"


def read_text(path: Path, what: str = "") -> str:
    """The text of a file (UTF-8, with or without a byte order mark).

    Args:
        what: Put in front of the path in the error ("questions file ").

    Raises:
        InputError: The file cannot be read or is not text.
    """
    try:
        return _unzip(Path(path).read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None)
        if reason is None:
            reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "damaged gzip file"
        raise InputError(f"{what}{path} cannot be read: {reason}") from error


def read_json(path: Path) -> Any:
    """The single JSON value of a file. Raises InputError naming file and line."""
    return _parse_json(read_text(path), path, 1)


def read_records(path: Path, what: str = "") -> list[Record]:
    """(line, value) of every line of JSON, or of every element of one JSON array in any layout.

    Raises:
        InputError: The file is missing or not JSON; names the file and the line.
    """
    text = read_text(path, what)
    records = _array_elements if text.lstrip().startswith("[") else _json_lines
    return list(records(text, path))


def read_table(
    path: Path, columns: Sequence[str], *, delimiter: str = ","
) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a table with a heading line.

    Args:
        columns: Required headings, in any capitalisation; rows have these keys.

    Raises:
        InputError: The file or a heading is missing, or a row has too few or too many fields.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        headings = [heading.strip().lower() for heading in next(reader)]
    except StopIteration:
        raise InputError(f"{path} is empty; expected the columns {', '.join(columns)}") from None
    absent = [column for column in columns if column.lower() not in headings]
    if absent:
        raise InputError(f"{path}:1: no column {', '.join(absent)}; there are {', '.join(headings)}")
    positions = {column: headings.index(column.lower()) for column in columns}
    rows = []
    for row in reader:
        if not row:
            continue
        if len(row) != len(headings):
            raise InputError(f"{path}:{reader.line_num}: {len(row)} fields, expected {len(headings)}")
        rows.append((reader.line_num, {column: row[at] for column, at in positions.items()}))
    return rows


def read_tab_separated(path: Path, counts: Collection[int]) -> list[tuple[int, list[str]]]:
    """(line, fields) of every line of a file without headings and quotes.

    Args:
        counts: Permitted numbers of fields.

    Raises:
        InputError: The file is missing, or a line has another number of fields.
    """
    rows = []
    for line, text in enumerate(read_text(path).rstrip("\n").split("\n"), start=1):
        fields = text.split("\t")
        if len(fields) not in counts:
            expected = " or ".join(map(str, counts))
            raise InputError(f"{path}:{line}: {len(fields)} fields between tabs, expected {expected}")
        rows.append((line, fields))
    return rows


def require_field(record: Any, key: str, kind: type | tuple[type, ...], source: str) -> Any:
    """`record[key]`. Raises InputError naming the source if it is missing, empty text or of another type."""
    if not isinstance(record, dict):
        raise InputError(f"{source}: expected an object with {key!r}, got {type(record).__name__}")
    value = record.get(key)
    if not isinstance(value, kind) or (kind is str and not str(value).strip()):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join("a non-empty string" if each is str else each.__name__ for each in kinds)
        raise InputError(f"{source}: {key!r} must be {expected}, got {value!r}")
    return value


def require_folder(path: Path, what: str) -> Path:
    """`path`. Raises InputError naming `what` if it is not a folder."""
    if not Path(path).is_dir():
        raise InputError(f"{what} {path} does not exist or is not a folder")
    return Path(path)


def find_file(folder: Path, *names: str) -> Path:
    """The first of these files that exists in the folder, plain or gzipped. Raises InputError naming them."""
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
        InputError: The file cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    with output_errors(path.parent):
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def sha256(path: Path) -> str:
    """Hash of the file as it was published: of the unpacked content of a ".gz" file."""
    return hashlib.sha256(_unzip(Path(path).read_bytes())).hexdigest()


def _unzip(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == _GZIP_MAGIC else data


def _json_lines(text: str, path: Path) -> Iterator[Record]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            yield line, _parse_json(content, path, line)


def _array_elements(text: str, path: Path) -> Iterator[Record]:
    _parse_json(text, path, 1)  # checks the whole; the loop below only finds where each element begins
    decoder = json.JSONDecoder()
    line, counted, offset = 1, 0, text.index("[") + 1
    while True:
        while text[offset] in " \t\r\n,":
            offset += 1
        if text[offset] == "]":
            return
        line, counted = line + text.count("\n", counted, offset), offset
        element, offset = decoder.raw_decode(text, offset)
        yield line, element


def _parse_json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"{path}:{line}: not valid JSON ({error.msg}, column {error.colno})") from error
