"""Read data files with errors that name the file and the line.

Every reader also takes a gzipped file, and keeps the limits of `regaze.reading`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.reading import StrPath, check_count, parse_json, read_bytes, read_text, readable
from regaze.reading import cache_folder as cache_folder

#: Rows and columns of a table.
MAX_ROWS = 1_000_000
MAX_COLUMNS = 1_000
#: Characters of a field.
MAX_FIELD = 2**17

#: What spreadsheets calculate, or have calculated at some time; a number is none.
_FORMULA = re.compile(r"'*\s*[=+\-@\t\r＝＋－＠]")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*([eE][+-]?\d+)?%?")
_BETWEEN = re.compile(r"[\s,]*")

#: (line, value)
Record = tuple[int, Any]


def read_json(path: StrPath, max_bytes: int | None = None, *, controls: bool = False) -> Any:
    """The single JSON value of a file. Raises InputError naming file and line."""
    path = os.fspath(path)
    text = read_text(path, max_bytes=max_bytes)
    return parse_json(text, path, max_bytes=max_bytes, controls=controls)


def read_records(path: StrPath, what: str = "", *, controls: bool = False) -> list[Record]:
    """(line, value) of every line of JSON, or of every element of one JSON array in any layout.

    Args:
        what: Put in front of the path in the error ("questions file ").
        controls: Accept escaped control characters, which the answers of models may hold.

    Raises:
        InputError: The file is missing or not JSON; names the file and the line.
    """
    return parse_records(read_text(path, what), path, controls=controls)


def parse_records(text: str, path: StrPath, *, controls: bool = False) -> list[Record]:
    """As `read_records`, of the text of a file."""
    path = os.fspath(path)
    check_count(text, path)
    records = _array_elements if text.startswith("[", _skip(text, 0)) else _json_lines
    return list(records(text, path, controls))


def read_table(
    path: StrPath, columns: Sequence[str], *, delimiter: str = ",", max_field: int = MAX_FIELD
) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a table with a heading line.

    Args:
        columns: Required headings, in any capitalisation; rows have these keys.
        max_field: Characters of a field, more where a table holds pictures.

    Raises:
        InputError: The file or a heading is missing, or a row has too few or too many fields.
    """
    path = os.fspath(path)
    table = _table_rows(path, delimiter, max_field)
    _, first = next(table, (1, []))
    headings = [heading.strip().lower() for heading in first]
    if not first:
        raise InputError(f"{path} is empty; expected the columns {', '.join(columns)}")
    absent = [column for column in columns if column.strip().lower() not in headings]
    if absent:
        raise InputError(f"{path}:1: no column {_one_line(absent)}; there are {_one_line(headings)}")
    positions = {column: headings.index(column.strip().lower()) for column in columns}
    if twice := [column for column in columns if headings.count(column.strip().lower()) > 1]:
        raise InputError(f"{path}:1: the column {twice[0]!r} occurs twice")
    rows = []
    for line, row in table:
        if len(row) != len(headings):
            raise InputError(f"{path}:{line}: {len(row)} fields, expected {len(headings)}")
        rows.append((line, {column: row[at] for column, at in positions.items()}))
    return rows


def read_headings(path: StrPath, delimiter: str, max_field: int = MAX_FIELD) -> list[str]:
    """The fields of a table's first line; none of an empty file. Raises InputError as `read_table`."""
    return next(_table_rows(path, delimiter, max_field), (1, []))[1]


def _table_rows(path: StrPath, delimiter: str, max_field: int) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of the rows that are not blank."""
    path = os.fspath(path)
    csv.field_size_limit(max_field)  # of the whole process, so it is set before each table
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    count = 0
    try:
        for row in reader:
            count += bool(row)
            if count > MAX_ROWS:
                raise InputError(f"{path} has more than {MAX_ROWS} rows")
            if len(row) > MAX_COLUMNS:
                raise InputError(f"{path}:{reader.line_num}: more than {MAX_COLUMNS} columns")
            if row:
                yield reader.line_num, list(map(_unguarded, row))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}") from error


def table_text(rows: Iterable[Sequence[Any]], delimiter: str) -> str:
    """Rows as a table that spreadsheets show, too: a cell that one would take for a formula begins with "'".

    `read_table` takes it away again. Characters that the reader refuses are written as `\\u....`.
    """
    out = io.StringIO(newline="")
    # Quoted, since Python before 3.13 leaves carriage returns without quotes.
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([_guarded(readable(str(cell))) for cell in row] for row in rows)
    return out.getvalue()


def _guarded(cell: str) -> str:
    is_formula = _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _guarded(cell[1:]) == cell else cell


def read_tab_separated(path: StrPath, counts: Collection[int]) -> list[tuple[int, list[str]]]:
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
    kinds = kind if isinstance(kind, tuple) else (kind,)
    is_flag = isinstance(value, bool) and bool not in kinds  # which is an int to Python
    if (
        not isinstance(value, kind)
        or is_flag
        or (str in kinds and isinstance(value, str) and not value.strip())
    ):
        expected = " or ".join("a non-empty string" if each is str else each.__name__ for each in kinds)
        raise InputError(f"{source}: {key!r} must be {expected}, got {value!r}")
    return value


def require_folder(path: StrPath, what: str) -> Path:
    """`path`. Raises InputError naming `what` if it is not a folder."""
    if not os.path.isdir(path):
        raise InputError(f"{what} {path} does not exist or is not a folder")
    return Path(path)


def require_texts(record: Any, key: str, source: str) -> list[str]:
    """`record[key]`, a list of texts. Raises InputError naming the source if it is something else."""
    texts: list[str] = require_field(record, key, (list, tuple), source)
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{source}: {key!r} must be a list of texts, got {texts!r}")
    return texts


def folders_of(folder: StrPath, images: StrPath | None, default: str) -> tuple[Path, Path]:
    """The folder of a benchmark, and that of its images: `default` in it unless another is given."""
    return Path(folder), Path(folder) / default if images is None else Path(images)


def find_file(folder: StrPath, *names: str) -> Path:
    """The first of these files that exists in the folder, plain or gzipped. Raises InputError naming them."""
    for name in names:
        for candidate in (Path(folder, name), Path(folder, f"{name}.gz")):
            if os.path.isfile(candidate):
                return candidate
    raise InputError(f"{folder} has no {' or '.join(names)}")


@contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an InputError that names the output folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be used: {error.strerror or error}") from error


def sha256(path: StrPath) -> str:
    """Hash of the file as it was published: of the unpacked content of a ".gz" file."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def _one_line(names: Sequence[str]) -> str:
    """Names for an error message: no line breaks, at most 200 characters."""
    text = " ".join(", ".join(names).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _json_lines(text: str, path: StrPath, controls: bool) -> Iterator[Record]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            yield line, parse_json(content, path, line, controls=controls)


def _array_elements(text: str, path: StrPath, controls: bool) -> Iterator[Record]:
    # Checks the whole; the loop below only finds where each element begins.
    count = len(parse_json(text, path, controls=controls))
    if count > MAX_ROWS:
        raise InputError(f"{path} has more than {MAX_ROWS} elements")
    decoder = json.JSONDecoder()
    line, counted, offset = 1, 0, text.index("[") + 1
    for _ in range(count):
        offset = _skip(text, offset)
        line, counted = line + text.count("\n", counted, offset), offset
        element, offset = decoder.raw_decode(text, offset)
        yield line, element


def _skip(text: str, offset: int) -> int:
    """The place after white space and commas."""
    found = _BETWEEN.match(text, offset)
    assert found is not None  # it may be empty
    return found.end()
