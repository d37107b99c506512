"""Completion by the shell."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from regaze.cli import app


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ev", ["evaluate"]),
        ("evaluate --max-n", ["--max-new-tokens"]),
        ("evaluate pope --method vc", ["vcd"]),
        ("heatmap --method dol", ["dola"]),
        ("evaluate po", ["pope", "popev2"]),
        ("compare pope,cha", ["pope,chair"]),
    ],
)
def test_words_are_completed(words, completed):
    environment = {
        "_REGAZE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"regaze {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    result = CliRunner().invoke(app, [], prog_name="regaze", env=environment)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == completed
