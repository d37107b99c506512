"""What is printed where there is no terminal, and on one."""

from __future__ import annotations

import pytest
from rich.table import Table

from regaze.cli import console


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_progress_without_a_terminal_is_a_line_now_and_then(clock, capsys):
    with console.progress() as report:
        for done in range(31):
            clock[0] = 100.0 + done
            report("plain" if done < 15 else "v\x1b[1mar", done, 30)
    assert capsys.readouterr().err.splitlines() == [
        "plain: 10 of 30 after 10 s",
        "v\\u001b[1mar: 20 of 30 after 20 s",
        "v\\u001b[1mar: 30 of 30 after 30 s",
    ]


def test_what_is_done_soon_prints_nothing(clock, capsys):
    with console.progress() as report:
        report("plain", 0, 2)
        clock[0] += 9.9
        report("plain", 2, 2)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_bars(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with console.progress() as report:
        report("plain", 3, 4)
    assert "3/4" in capsys.readouterr().err


def test_tables_are_cut_by_a_terminal_alone(capsys, monkeypatch):
    cells = [f"column {number} with a long text" for number in range(8)]
    table = Table(box=None)
    for cell in cells:
        table.add_column(cell, no_wrap=True)
    table.add_row(*cells)
    console.stdout().print(table)
    for line in capsys.readouterr().out.splitlines():
        assert [cell for cell in cells if cell in line] == cells
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    console.stdout().print(table)
    assert "column 7 with a long text" not in capsys.readouterr().out
