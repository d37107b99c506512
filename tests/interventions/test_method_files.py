"""--method file.py:Class: a method from a file, and how a file is told from another."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from regaze.cli import app
from regaze.cli.methods import read_method, read_methods
from regaze.errors import BadParameterError, InputError, UnknownMethodError, UnknownParameterError
from regaze.interventions.registry import create_method, method_class

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass, field
from typing import ClassVar
import torch
from regaze.interventions import Intervention
from regaze.interventions.parameters import Fraction
from regaze.kernels import AttentionEdit


@dataclass(frozen=True)
class Softer(Intervention):
    name: ClassVar[str] = "softer"
    summary: ClassVar[str] = "less of every head"
    source: ClassVar[str] = "a test"

    gain: Fraction = field(default=0.5, metadata={"help": "factor of heads"})

    def edit(self, layer, step, context):
        return AttentionEdit(head_gain=torch.full((1, 6), self.gain))


@dataclass(frozen=True)
class Nameless(Intervention):
    pass


class Other:
    pass
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    return path


def test_parameters_are_read_by_their_types(file):
    method = read_method(f"{file}:Softer", ["gain=0.25"])
    assert (method.name, method.gain) == ("softer", 0.25)
    assert type(method).from_dict(method.to_dict()) == method
    assert [*read_methods(f"vcd,{file}:Softer")] == ["vcd", "softer"]
    with pytest.raises(BadParameterError, match=r"gain=2: expected float in \[0, 1\]"):
        read_method(f"{file}:Softer", ["gain=2"])
    with pytest.raises(UnknownParameterError, match="no parameter 'gian'; did you mean 'gain'"):
        read_method(f"{file}:Softer", ["gian=2"])


def test_changed_code_is_another_method(file):
    first = create_method(f"{file}:Softer")
    assert create_method(f"{file}:Softer") == first
    file.write_text(SOURCE.replace("self.gain)", "self.gaim)"))  # same size, same second
    second = create_method(f"{file}:Softer")
    assert first.to_dict().pop("file-sha256") != second.to_dict().pop("file-sha256")
    assert first.edit(0, 0, None).head_gain.tolist() == [[0.5] * 6]
    with pytest.raises(AttributeError, match="gaim"):
        second.edit(0, 0, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"own.py is no subclass .*; there is .*own.py:Softer, .*own.py:Nameless$"),
        (":Sofer", r"own.py:Sofer is no subclass .*; there is .*own.py:Softer"),
        (":Other", "own.py:Other is no subclass of regaze.interventions.Intervention"),
        (":Nameless", "own.py:Nameless has no name; add"),
    ],
)
def test_classes_that_are_none(file, name, message):
    with pytest.raises(UnknownMethodError, match=message):
        method_class(f"{file}{name}")


@pytest.mark.parametrize("source", ["import no_such_package", "raise SystemExit(3)", "def f(:"])
def test_files_that_fail(file, source):
    file.write_text(source)
    result = CliRunner().invoke(app, ["heatmap", "scene_000", "What?", "--method", f"{file}:Softer"])
    assert result.exit_code == 2
    assert "own.py cannot be run: " in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match=r"none\.py"):
        method_class("none.py:Softer")


def test_commands_take_it(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = json.loads(CliRunner().invoke(app, ["methods", "own.py:Softer", "--json"]).stdout)
    assert listed["own.py:Softer"]["parameters"]["gain"]["help"] == "factor of heads"
    arguments = [
        "evaluate",
        "pope",
        "--limit",
        "2",
        "--split",
        "random",
        "--method",
        "own.py:Softer",
        "--json",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    stored = json.loads(result.stdout)["methods"]["softer"]
    assert (stored["method"], stored["gain"], len(stored["file-sha256"])) == ("softer", 0.5, 64)
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name.startswith("pope-softer-demo-")
