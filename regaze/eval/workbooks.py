"""Read a table from an Excel workbook (.xlsx), as VLMEvalKit writes its predictions.

Nothing of a workbook is calculated: of a formula its text is read, since spreadsheets take answers that begin
with "=" for formulas. A workbook is a zip archive of XML: its unpacked size, the number of its cells and the
time are limited, and a document type, with which XML can grow without end, is refused.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

from regaze.errors import InputError
from regaze.eval.files import MAX_COLUMNS, MAX_ROWS
from regaze.reading import StrPath, byte_limit, read_bytes, timed

#: Files in the archive; a workbook with one sheet has about ten.
_MAX_MEMBERS = 1000
_DOCUMENT_TYPES = tuple("<!DOCTYPE".encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be"))


def read_workbook(path: StrPath) -> list[tuple[int, dict[str, str]]]:
    """(row, {heading: text}) of the first sheet, whose first row has the headings. Empty rows are left out.

    Raises:
        InputError: openpyxl is not installed, the file is no workbook or exceeds a limit, or a heading occurs
            twice.
    """
    path = os.fspath(path)
    try:
        import openpyxl
    except ImportError:
        raise InputError(
            f"{path}: openpyxl reads workbooks: pip install 'regaze[eval]'; or save the table as .tsv"
        ) from None
    data = read_bytes(path)
    try:
        _check_archive(data, path)
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, keep_links=False)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # those that the file claims may be any
        return list(_records(timed(sheet.iter_rows(values_only=True), path, len(data)), path))
    except InputError:
        raise
    except Exception as error:  # openpyxl fails in any way where a file is damaged
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"{path} is not a readable workbook: {reason}") from None


def _check_archive(data: bytes, path: str) -> None:
    """Raise InputError for an archive that is too large or has a document type in it."""
    limit = byte_limit()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS or sum(member.file_size for member in members) > limit:
            raise InputError(f"{path} unpacks to more than {limit} bytes; set REGAZE_MAX_BYTES to read more")
        for member in members:  # zipfile unpacks no more than the size that a member claims
            content = archive.read(member)
            if any(mark in content for mark in _DOCUMENT_TYPES):
                raise InputError(f"{path}: {member.filename[:80]!r} has a document type, as no workbook has")


def _records(rows: Iterable[tuple[Any, ...]], path: str) -> Iterator[tuple[int, dict[str, str]]]:
    headings: list[str] = []
    for number, row in enumerate(rows, start=1):
        if number > MAX_ROWS:
            raise InputError(f"{path} has more than {MAX_ROWS} rows")
        if len(row) > MAX_COLUMNS:
            raise InputError(f"{path}:{number}: more than {MAX_COLUMNS} columns")
        texts = list(map(_text, row))
        if not any(texts):
            continue
        if not headings:
            headings = _headings(texts, f"{path}:{number}")
        elif any(texts[len(headings) :]):
            raise InputError(f"{path}:{number}: {len(texts)} fields, expected {len(headings)}")
        else:
            texts += [""] * (len(headings) - len(texts))  # empty cells at the end are not stored
            yield number, dict(zip(headings, texts, strict=False))


def _headings(texts: list[str], source: str) -> list[str]:
    while not texts[-1]:
        texts.pop()
    twice = next((name for name in texts if texts.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{source}: the column {twice!r} occurs twice")
    return texts


def _text(value: Any) -> str:
    """A cell as text: whole numbers without ".0", a formula as it was written."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(getattr(value, "text", value))  # of openpyxl's object for a formula of several cells
