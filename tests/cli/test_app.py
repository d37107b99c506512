"""The `regaze` command itself: its list of commands, and errors before one runs."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
from typer.testing import CliRunner

from regaze.cli import app
from regaze.cli.app import COMMANDS
from regaze.interventions import registry


@pytest.mark.parametrize(("name", "summary"), COMMANDS.items())
def test_the_table_says_what_the_command_says(name, summary):
    name_in_code = name.replace("-", "_")
    function = getattr(import_module(f"regaze.cli.commands.{name_in_code}"), name_in_code)
    assert inspect.getdoc(function).split("\n")[0] == summary
    help = CliRunner().invoke(app, [name, "--help"])
    assert help.exit_code == 0
    assert f"Usage: root {name}" in help.stdout
    assert summary in " ".join(help.stdout.split())


def test_without_a_command_the_commands_are_listed():
    for arguments in ([], ["--help"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0
        assert all(f"  {name} " in result.stdout for name in COMMANDS)
        assert all(summary in result.stdout for summary in COMMANDS.values())


def test_a_mistyped_command_is_one_line():
    result = CliRunner().invoke(app, ["evalute"])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "No such command 'evalute'. Did you mean 'evaluate'" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (OSError(28, "No space left on device"), 2, "regaze: error: No space left on device\n"),
        (OSError(5, "Input/output error", "a.txt"), 2, "regaze: error: a.txt: Input/output error\n"),
    ],
    ids=["pipe", "output", "file"],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, error, code, message):
    def failing() -> None:
        raise error

    monkeypatch.setattr(registry, "load_methods", failing)
    result = CliRunner().invoke(app, ["methods"])
    assert (result.exit_code, result.stderr) == (code, message)


def test_a_mistyped_option_is_one_line():
    result = CliRunner().invoke(app, ["methods", "--jason"])
    assert result.exit_code == 2
    assert "regaze: error: No such option: --jason" in result.stderr
    assert "methods --help`)" in result.stderr
