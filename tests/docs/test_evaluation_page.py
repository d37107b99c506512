"""The figures on docs/guide/evaluation.md are those of the commands on it."""

from __future__ import annotations

import re
import shlex

import pytest
from paths import DOCS
from typer.testing import CliRunner

from regaze import demo
from regaze.cli import app
from regaze.eval import catalogue

PAGE = DOCS / "guide" / "evaluation.md"


def commands() -> list[list[str]]:
    """Every `regaze` command of the page."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("regaze ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def words(text: str) -> list[str]:
    return text.replace("|", " ").split()


@pytest.mark.slow
@pytest.mark.skipif(not demo.MODEL_DIR.is_dir(), reason="the demo model is not in this checkout")
def test_the_first_table_is_what_the_first_command_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, commands()[0])
    assert result.exit_code == 0, result.stderr
    printed = [words(line) for line in result.stdout.splitlines()]
    shown = re.search(r"```text\n(.*?)```", PAGE.read_text(), re.S)[1].splitlines()
    for line in shown:
        assert line == "..." or words(line) in printed, line


@pytest.mark.slow
@pytest.mark.skipif(not demo.MODEL_DIR.is_dir(), reason="the demo model is not in this checkout")
def test_the_captions_are_what_the_command_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = next(each for each in commands() if each[:2] == ["compare", "captions"])
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    page = PAGE.read_text()
    section = page[page.index("compare captions") : page.index("A table with the first column")]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in ("plain", "vcd", "pai"):
            printed = next(row for row in result.stdout.splitlines() if row.startswith(f"| {cells[0]} |"))
            for cell in cells:
                assert cell in printed


def test_every_command_of_the_page_names_options_that_there_are():
    assert len(commands()) > 10
    for command in commands():
        asked = CliRunner().invoke(app, [command[0], "--help"])
        assert asked.exit_code == 0
        for word in command:
            if word.startswith("--"):
                assert word in asked.stdout
        if command[0] in ("evaluate", "compare", "score"):
            assert all(name in catalogue.NAMES for name in command[1].split(",")) or "--config" in command


@pytest.mark.slow
@pytest.mark.skipif(not demo.MODEL_DIR.is_dir(), reason="the demo model is not in this checkout")
def test_the_sweep_is_what_the_command_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = next(each for each in commands() if each[0] == "sweep")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    printed = [words(line) for line in result.stdout.splitlines()]
    page = PAGE.read_text()
    shown = [line for line in page[page.index("regaze sweep") :].splitlines() if line.startswith("| alpha=")]
    assert len(shown) == 4
    for line in shown:
        assert words(line) in printed, line
    assert (tmp_path / "out/sweep/plots/captions-sweep.png").exists()
