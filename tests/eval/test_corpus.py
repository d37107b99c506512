"""Bad inputs to every command: no traceback, no hang, no memory filled, one line that says what is wrong.

The commands run in a process of their own, whose CPU time per input and whose memory are limited.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from official_files import OFFICIAL
from paths import SHARED
from typer.testing import CliRunner

import regaze
from regaze.cli import app

SUPPORT = Path(__file__).resolve().parents[1] / "support"


def run(count: int, seed: int) -> dict[str, Any]:
    """What `corpus.py` reports of so many inputs."""
    paths = os.pathsep.join([str(Path(regaze.__file__).parents[1]), str(SUPPORT)])
    more = {"PYTHONPATH": paths, "NLTK_DATA": str(SHARED / "nltk_data"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SUPPORT / "corpus.py"), str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **more})
    assert done.returncode == 0, f"ended by {done.returncode}: {done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("count", "seed"), [(100, 1), pytest.param(2_000, 2, marks=pytest.mark.exhaustive)], ids=["100", "2000"]
)
def test_bad_inputs_end_in_one_line(count, seed):
    report = run(count, seed)
    print({key: value for key, value in report.items() if key != "problems"})
    assert report["problems"] == []
    assert report["inputs"] == count
    assert min(report["kinds"].values()) > 0
    assert report["mib"] < 2048


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_files_that_are_damaged_are_right_before(tmp_path, monkeypatch, name):
    """Otherwise the inputs above would all end at the first check."""
    monkeypatch.setenv("NLTK_DATA", str(SHARED / "nltk_data"))
    if name == "amber" and not (SHARED / "nltk_data").is_dir():
        pytest.skip("NLTK's data are absent")
    result = CliRunner().invoke(app, OFFICIAL[name].write(tmp_path), prog_name="regaze")
    assert result.exit_code == (0 if OFFICIAL[name].works else 2), result.output
    if not OFFICIAL[name].works:
        assert "has no verdict on 1 of 1 prompts" in result.stderr
