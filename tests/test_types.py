"""What a type checker of users sees: the types of public names, and those in README's code."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from readme_block import python_block

pytest.importorskip("basedpyright", reason="basedpyright is not installed")
PUBLIC = ("regaze", "regaze.toolkit", "regaze.interventions", "regaze.eval", "regaze.toolkit.analysis")
#: What of all names in the package, private ones too, has a type that every checker sees alike.
LEAST_COMPLETE = 0.94


def report(*arguments: str, folder: Path) -> dict[str, Any]:
    """What basedpyright finds with this package and this environment, which needs no network."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_code_of_the_readme_has_no_error(tmp_path):
    block = python_block(ROOT / "README.md")
    (tmp_path / "readme.py").write_text(f"{block}\nregaze.no_such_name\n", encoding="utf-8")
    settings = {"typeCheckingMode": "standard", "pythonVersion": "3.10", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    found = report(folder=tmp_path)["generalDiagnostics"]
    assert [each["message"] for each in found if each["severity"] == "error"] == [
        '"no_such_name" is not a known attribute of module "regaze"'
    ]


@pytest.mark.slow
def test_every_public_name_has_a_complete_type(tmp_path):
    complete = report("--verifytypes", "regaze", "--ignoreexternal", folder=tmp_path)["typeCompleteness"]
    assert Path(complete["packageRootDirectory"]) == ROOT / "regaze"
    assert complete["completenessScore"] >= LEAST_COMPLETE
    known = {each["name"]: each["isTypeKnown"] for each in complete["symbols"] if each["isExported"]}
    objects = [
        getattr(importlib.import_module(package), name)
        for package in PUBLIC
        for name in importlib.import_module(package).__all__
    ]
    places = {f"{each.__module__}.{each.__qualname__}" for each in objects if hasattr(each, "__qualname__")}
    names = {place for place in places if place.startswith("regaze.")}
    assert {"regaze.toolkit.wrap.Gaze", "regaze.interventions.var.method.VAR"} <= names <= known.keys()
    members = [name for name in known if name in names or name.rpartition(".")[0] in names]
    assert len(members) > 3 * len(names)
    assert [name for name in members if not known[name]] == []
