"""Workbooks are read as their texts, whatever they claim of themselves, and within limits."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from regaze.errors import InputError
from regaze.eval.workbooks import read_workbook

NAMESPACE = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


@pytest.fixture(scope="module")
def openpyxl() -> Any:
    return pytest.importorskip("openpyxl")


def write(openpyxl: Any, path: Path, *rows: Any) -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def with_member(path: Path, name: str, content: bytes) -> Path:
    """The workbook with one of its files replaced."""
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, old in {**members, name: content}.items():
            archive.writestr(each, content if each == name else old)
    return path


def sheet(rows: str, more: str = "") -> bytes:
    text = f'<worksheet xmlns="{NAMESPACE}">{more}<sheetData>{rows}</sheetData></worksheet>'
    return text.encode()


def cell(place: str, text: str) -> str:
    return f'<c r="{place}" t="inlineStr"><is><t>{text}</t></is></c>'


SHEET = "xl/worksheets/sheet1.xml"


def test_cells_are_texts(openpyxl, tmp_path):
    path = write(
        openpyxl,
        tmp_path / "a.xlsx",
        ("index", "prediction", "note", None),
        (0, "Yes.\nIt is.", None),
        (),
        (1.0, '=HYPERLINK("http://host")&A1', 2.5),
        ("007", "", True),
    )
    expected = [
        (2, {"index": "0", "prediction": "Yes.\nIt is.", "note": ""}),
        (4, {"index": "1", "prediction": '=HYPERLINK("http://host")&A1', "note": "2.5"}),
        (5, {"index": "007", "prediction": "", "note": "True"}),
    ]
    assert read_workbook(path) == expected


def test_what_is_wrong_is_named(openpyxl, tmp_path):
    path = tmp_path / "a.xlsx"
    write(openpyxl, path, ("index", "index"), (0, 1))
    with pytest.raises(InputError, match=r"a\.xlsx:1: the column 'index' occurs twice"):
        read_workbook(path)
    write(openpyxl, path, ("index",), (0, "more"))
    with pytest.raises(InputError, match=r"a\.xlsx:2: 2 fields, expected 1"):
        read_workbook(path)
    for content in (b"", b"PK\3\4 no archive", b"index\tprediction\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.xlsx is not a readable workbook: "):
            read_workbook(path)
    write(openpyxl, path, ("index",), (0,))
    with_member(path, SHEET, b"<worksheet")
    with pytest.raises(InputError, match=r"a\.xlsx is not a readable workbook: "):
        read_workbook(path)


def test_an_archive_that_unpacks_to_too_much_is_refused(openpyxl, tmp_path, monkeypatch):
    path = write(openpyxl, tmp_path / "a.xlsx", ("index",), (0,))
    with_member(path, "xl/media/x.bin", bytes(2**26))
    assert path.stat().st_size < 2**17
    with pytest.raises(InputError, match=r"a\.xlsx unpacks to more than 67108864 bytes; set REGAZE"):
        read_workbook(path)
    # A size that is not true.
    data = bytearray(path.read_bytes())
    for at in [n for n in range(len(data) - 4) if data[n : n + 4] == (2**26).to_bytes(4, "little")]:
        data[at : at + 4] = (16).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.xlsx is not a readable workbook: "):
        read_workbook(path)


def test_sizes_that_a_sheet_claims_are_not_believed(openpyxl, tmp_path):
    path = write(openpyxl, tmp_path / "a.xlsx", ("index",), (0,))
    head = f'<row r="1">{cell("A1", "index")}</row>'
    with_member(
        path, SHEET, sheet(f'{head}<row r="2">{cell("A2", "7")}</row>', '<dimension ref="A1:XFD1048576"/>')
    )
    assert read_workbook(path) == [(2, {"index": "7"})]
    with_member(path, SHEET, sheet(f'{head}<row r="900000000">{cell("A900000000", "7")}</row>'))
    with pytest.raises(InputError, match=r"a\.xlsx has more than 1000000 rows"):
        read_workbook(path)
    with_member(path, SHEET, sheet(f'{head}<row r="2">{cell("XFD2", "7")}</row>'))
    with pytest.raises(InputError, match=r"a\.xlsx:2: more than 1000 columns"):
        read_workbook(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(openpyxl, tmp_path, encoding):
    path = write(openpyxl, tmp_path / "a.xlsx", ("index",), (0,))
    values = ["x" * 99, *(f"&e{n};" * 9 for n in range(8))]
    kinds = "".join(f'<!ENTITY e{n} "{value}">' for n, value in enumerate(values))
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE worksheet [{kinds}]>'
    text += sheet(f'<row r="1">{cell("A1", "&e8;")}</row>').decode()
    with_member(path, SHEET, text.encode(encoding))
    with pytest.raises(InputError, match=r"a\.xlsx: 'xl/worksheets/sheet1.xml' has a document type"):
        read_workbook(path)


def test_without_the_reader_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(
        InputError, match=r"a\.xlsx: openpyxl reads workbooks: pip install 'regaze\[eval\]'; or save"
    ):
        read_workbook(tmp_path / "a.xlsx")
