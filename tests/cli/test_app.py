"""The `regaze` command itself: its list of commands, and errors before one runs."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
from typer.testing import CliRunner

from regaze.cli import app
from regaze.cli.app import COMMANDS
from regaze.cli.methods import read_method, read_methods
from regaze.cli.options import parse_indices
from regaze.errors import BadParameterError
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


@pytest.mark.parametrize("command", [[], ["evaluate"], ["methods"]])
def test_help_has_a_short_name(command):
    results = [CliRunner().invoke(app, [*command, option]) for option in ("-h", "--help")]
    assert results[0].exit_code == 0
    assert results[0].stdout == results[1].stdout


def test_methods_are_listed_a_line_each_and_grouped():
    lines = CliRunner().invoke(app, ["methods"]).stdout.splitlines()
    assert lines[0] == "Attention"
    starts = [line.split()[0] for line in lines if line]
    known = [*registry.list_methods(), *registry.list_controls()]
    assert sorted(name for name in starts if name in known) == sorted(known)
    assert len(lines) < len(known) + 20
    assert not any("--set" in line for line in lines)
    assert starts.index("pai") < starts.index("fastv") < starts.index("vti") < starts.index("vcd")


def test_methods_are_found_in_any_capitals_and_shown_one_by_one():
    shown = CliRunner().invoke(app, ["methods", "VCD"]).stdout
    assert shown.startswith("vcd  ")
    assert "--set alpha" in shown
    assert "pai  " not in shown
    unknown = CliRunner().invoke(app, ["methods", "VCDD"])
    assert unknown.exit_code == 2
    assert "unknown method 'VCDD'; did you mean 'vcd'?" in unknown.stderr
    assert [*read_methods("VCD, Pai")] == ["vcd", "pai"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3", [3]),
        ("0-3", [0, 1, 2, 3]),
        ("0,2-4,9", [0, 2, 3, 4, 9]),
        ("5-5", [5]),
        (None, None),
        ("-1", [-1]),
    ],
)
def test_numbers_of_layers_may_be_ranges(text, numbers):
    assert parse_indices("--layers", text) == numbers


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluate", "POPE", "--limit", "0"], "limit 0: expected at least 1 question"),
        (["evaluate", "pop", "--limit", "0"], "unknown benchmark 'pop'; did you mean 'pope'"),
        (["evaluate", "pope", "--bench", "LIMIT=0"], "limit 0: expected at least"),
        (
            ["evaluate", "pope", "--bench", "splts=none"],
            "pope has no option 'splts' here; did you mean 'splits'?",
        ),
        (["evaluate", "pope", "--generate", "Top-P=2"], "--generate top_p=2: expected float in (0, 1]"),
        (["evaluate", "pope", "--model-arg", "Dtype=x"], "--model-arg dtype=x: expected 'float32'"),
        (
            ["evaluate", "pope", "--method", "PAI", "--set", "Layers=3-1"],
            "--set layers=3-1: expected the first",
        ),
        (
            ["evaluate", "pope", "--method", "pai", "--set", "vcd:alpha=1"],
            "--set vcd:alpha=...: the method is pai",
        ),
        (["compare", "--methods", "pai,vcd", "--set", "alpha=1"], "--set alpha=...: of which method?"),
        (["compare", "--methods", "pai,vcd", "--set", "dola:x=1"], "dola is not among pai, vcd"),
        (["inspect", "dmeo"], "Did you mean 'demo'?"),
        (["reproduce", "demo-pop"], "unknown recipe 'demo-pop'; did you mean 'demo-pope'"),
        (["reproduce", "Demo_Popes"], "did you mean 'demo-pope'"),
        (["fit", "VTTI"], "unknown method 'VTTI'; did you mean 'vti'?"),
        (["benchmarks", "get", "MMVett"], "unknown benchmark 'MMVett'; did you mean 'mm-vet'"),
        (["score", "poep", "a.jsonl"], "did you mean 'pope'"),
        (["heatmap", "scen_000", "What?"], "no shipped scene has that name: scene_000 to scene_119"),
    ],
)
def test_names_may_have_any_capitals_and_near_ones_are_suggested(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert told in result.stderr


def test_settings_of_several_methods_name_theirs():
    chosen = read_methods("PAI,VCD", ["pai:alpha=0.25", "VCD:Alpha=2"])
    assert (chosen["pai"].alpha, chosen["vcd"].alpha) == (0.25, 2.0)
    assert read_methods("pai", ["alpha=0.25"]) == read_methods("pai", ["pai:alpha=0.25"])
    labelled = '[{"label": "a", "method": "pai"}, {"label": "b", "method": "pai", "gamma": 1.5}]'
    chosen = read_methods(labelled, ["b:layers=1-3"])
    assert (chosen["a"].layers, chosen["b"].layers, chosen["b"].gamma) == (None, (1, 3), 1.5)


def test_a_method_that_is_no_name_is_one_error():
    with pytest.raises(BadParameterError, match=r'^expected \{"method": name, parameter: value, ...\}'):
        read_methods('[{"label": {}, "method": []}]', ["alpha=1"])


@pytest.mark.parametrize("text", ["3-1", "0-999999999", "0-", "1--2", "a-b", ""])
def test_ranges_that_are_none_are_refused(text):
    with pytest.raises(BadParameterError, match=rf"^--layers {text}: expected "):
        parse_indices("--layers", text)


def test_an_option_of_a_benchmark_is_given_once():
    arguments = ["evaluate", "pope", "--limit", "2", "--bench", "limit=3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.endswith("--bench limit: another option says it, too; give one of the two\n")


def test_a_method_that_would_change_nothing_is_said_to(capsys):
    with pytest.raises(BadParameterError, match=r"--methods: knockout: no heads to remove; add --set heads="):
        read_methods("pai,knockout")
    assert [*read_methods("var,vcd", ["var:moved=0"])] == ["var", "vcd"]
    assert read_method("knockout", None, varied=True) is not None  # of a sweep over heads
    said = " ".join(capsys.readouterr().err.split())
    assert "--methods: var changes nothing as it is set: VAR(" in said
    assert "vcd changes" not in said
