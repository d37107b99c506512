"""How the pages of `compare`, `sweep` and `score` are laid out."""

from __future__ import annotations

import pytest

from regaze.cli import tables
from regaze.eval.report.sections import Section

HEAD = ["", "CHAIR_s", "recall", "words", "p", "Holm p", "changed", "confounds"]
LONG = "12.5 (-31.2 [-56.2, -12.5])"
PLAIN = ["plain", "43.8 [18.8, 68.8]", *[""] * 6]


def page(methods):
    rows = [[name, LONG, LONG, LONG, "0.06", "0.12", "16", "length -18%, 2.0 forwards"] for name in methods]
    small = [["", "accuracy", "damage"], ["vcd", "75.0", "no"]]
    return [
        Section("captions, chair scorer", paragraphs=["word " * 40], table=[HEAD, PLAIN, *rows]),
        Section("Damage check", table=small),
    ]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")


def test_a_page_in_a_pipe_is_markdown(capsys):
    tables.show_sections(page(["vcd"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "## captions, chair scorer"
    assert f"| vcd | {LONG} | {LONG} |" in "\n".join(lines)
    assert "| vcd | 75.0 | no |" in lines


def test_a_terminal_shows_every_figure_in_its_width(terminal, capsys):
    tables.show_sections(page(["vcd", "pai", "dola", "opera"]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line.split() for line in lines]
    assert ["plain", "vcd", "pai"] in heads
    assert ["dola", "opera"] in heads
    shown = [line for line in lines if line.startswith("CHAIR_s")]
    assert len(shown) == 2  # three columns beside the labels, then the other two
    assert "43.8 [18.8, 68.8]" in shown[0]
    assert "[-56.2, -12.5])" in lines[lines.index(shown[0]) + 1]
    assert ["vcd", "75.0", "no"] in [line.split() for line in lines]  # a narrow table stays as it is
