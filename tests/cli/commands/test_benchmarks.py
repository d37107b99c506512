"""`regaze benchmarks`: all, one, or what to download."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from regaze.cli import app


def regaze(*arguments):
    return CliRunner().invoke(app, ["benchmarks", *arguments])


def test_one_benchmark_is_shown_by_its_name():
    shown = regaze("repope").stdout
    assert shown.startswith("repope  RePOPE")
    assert "\n  --data demo: options corrected_only, limit, splits, suffix\n" in shown
    assert len(shown.splitlines()) == 8
    assert list(json.loads(regaze("repope", "--json").stdout)) == ["repope"]
    assert len(json.loads(regaze("--json").stdout)) > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "unknown benchmark 'nope'; did you mean 'rope', 'pope'"),
        (
            ["show", "pope"],
            "unknown action 'show'; there is `regaze benchmarks get NAME` and `regaze benchmarks NAME`",
        ),
        (["get"], "get what? There are pope, popev2"),
    ],
)
def test_what_there_is_not_is_named(arguments, message):
    result = regaze(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
