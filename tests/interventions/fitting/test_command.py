"""`regaze fit`: from the demo's pairs to a file that other commands use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from regaze.cli import app
from regaze.interventions.fitting import Directions

SETTINGS = ("--set", "copies=1", "--set", "pairs=3")


def regaze(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "deeper" / "vti.safetensors"
    result = regaze("fit", "vti", *SETTINGS, "-o", path)
    assert result.exit_code == 0, result.output
    assert "vti: 3 examples of demo on demo (6 layers of width 192)" in result.stdout
    assert "text: 6 x 192" in result.stdout
    assert f"--set directions={path}" in result.stderr
    assert [p.name for p in path.parent.iterdir()] == ["vti.safetensors"]
    return path


def test_the_same_command_finds_its_result(file):
    before = file.stat().st_mtime_ns
    again = regaze("fit", "vti", *SETTINGS, "-o", file, "--json")
    assert "is there already" in again.stderr
    assert json.loads(again.stdout)["settings"]["copies"] == 1
    assert file.stat().st_mtime_ns == before


def test_evaluate_uses_it(file, tmp_path):
    arguments = ("evaluate", "pope", "--limit", "2", "--output", tmp_path / "run", "--json")
    result = regaze(*arguments, "--method", "vti", "--set", f"directions={file}")
    assert result.exit_code == 0, result.output
    described = json.loads(result.stdout)["methods"]["vti"]["directions"]
    assert described == f"{file}#{Directions.load(file).digest}"


def test_an_interrupted_fit_continues(file, tmp_path):
    path = tmp_path / "vti.safetensors"
    command = [sys.executable, "-m", "regaze", "fit", "vti", "-o", str(path), "--set", "copies=1"]
    process = subprocess.Popen([*command, "--set", "pairs=12"], stderr=subprocess.PIPE, text=True)
    parts = path.with_suffix(".parts")
    deadline = time.monotonic() + 120
    while len(list(parts.glob("vision_*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped by SIGINT; what is measured so far is in {parts}, and the same command" in errors
    left = {p.name: p.stat().st_mtime_ns for p in parts.glob("*.safetensors")}
    assert left
    assert not list(parts.glob(".*"))
    result = regaze("fit", "vti", "-o", path, "--set", "copies=1", "--set", "pairs=12")
    assert result.exit_code == 0, result.output
    assert not parts.exists()
    assert Directions.load(path).about["data"]["pairs"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("var",), "'var' needs no fit; methods that do: "),
        (("vto",), "unknown method 'vto'; did you mean 'vti'"),
        (("vti", "--set", "copies=0"), "copies"),
        (("vti", "--set", "masks=1"), "no parameter 'masks'; did you mean 'masked'? There are pairs, rank"),
        (("vti", "--model", "elsewhere"), "--model elsewhere needs --data"),
        (("vti", "--data", "nowhere.jsonl"), "nowhere.jsonl cannot be read: No such file"),
        (("vti", "-o", "x.json"), "expected a name that ends in .safetensors"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = regaze("fit", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_other_files_are_not_overwritten(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"mine")
    result = regaze("fit", "vti", "-o", path)
    assert result.exit_code == 2
    assert "is there and would be overwritten" in result.stderr
    assert path.read_bytes() == b"mine"


def test_a_method_without_its_directions_is_refused(tmp_path):
    result = regaze("evaluate", "pope", "--method", "vti", "--output", tmp_path)
    assert result.exit_code == 2
    assert "--method vti: no directions: fit them once with `regaze fit vti" in result.stderr
