"""The examples at the end of each command's help."""

from __future__ import annotations

import shlex

import pytest
from typer.testing import CliRunner

from regaze import demo
from regaze.cli import app
from regaze.cli.app import COMMANDS, load_command
from regaze.cli.examples import EXAMPLES

LINES = [line for lines in EXAMPLES.values() for line in lines]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_every_example_names_arguments_that_there_are(line):
    program, command, *arguments = shlex.split(line)
    assert program == "regaze"
    load_command(command).make_context(command, arguments)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"lm-eval"}))
def test_help_ends_with_the_examples_a_line_each(command):
    lines = CliRunner().invoke(app, [command, "--help"]).stdout.splitlines()
    shown = [line.strip() for line in lines[lines.index("  Examples:") + 1 :] if line.strip()]
    assert shown == list(EXAMPLES[command])


@pytest.mark.slow
@pytest.mark.skipif(not demo.MODEL_DIR.is_dir(), reason="the demo model is not in this checkout")
@pytest.mark.parametrize("command", ["heatmap", "view", "inspect", "objects", "methods", "doctor"])
def test_first_examples_run_as_they_stand(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(EXAMPLES[command][0])[1:])
    assert result.exit_code == 0, result.stderr
