"""The goldens of our own are what their recipes make, small, and made without regaze."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from paths import OWN_GOLDENS, ROOT
from safetensors.numpy import load_file

MAKE = """
import runpy, sys
sys.path.insert(0, {data!r})
sys.argv = ["make.py", "--output", {folder!r}]
runpy.run_path({data!r} + "/make.py", run_name="__main__")
print(sorted(name for name in sys.modules if name.split(".")[0] in ("regaze", "torch", "transformers")))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with all goldens made anew, and what was imported for it that should not be."""
    folder = tmp_path_factory.mktemp("goldens")
    code = MAKE.format(data=str(ROOT / "tests/data"), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return folder, done.stdout.splitlines()[-1]


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_the_recipes_make_the_files_that_are_there(made):
    folder, _ = made
    assert files(folder) == files(OWN_GOLDENS)
    for name in files(folder):
        if name.suffix != ".safetensors":
            assert (folder / name).read_text() == (OWN_GOLDENS / name).read_text(), name
            continue
        again, kept = load_file(folder / name), load_file(OWN_GOLDENS / name)
        assert set(again) == set(kept)
        for key, values in kept.items():
            assert (again[key].dtype, again[key].shape) == (values.dtype, values.shape), (name, key)
            np.testing.assert_allclose(again[key], values, rtol=1e-5, atol=1e-6, err_msg=f"{name} {key}")


def test_regaze_has_no_part_in_them(made):
    assert made[1] == "[]"


def test_they_are_small():
    assert sum(path.stat().st_size for path in OWN_GOLDENS.rglob("*") if path.is_file()) < 1_100_000


#: Sets of equations; what needs models of others is left to their goldens.
METHODS = set("agla carve dola evit gift mma moa pai paint retrieval var vcd vit_cls".split())  # noqa: SIM905


def test_every_method_has_some():
    found = {path.parent.name for path in (OWN_GOLDENS / "methods").glob("*/*.json")}
    assert found == METHODS
    for path in (OWN_GOLDENS / "methods").glob("*/*.json"):
        if path.stem != "e2e_config":
            assert json.loads(path.read_text())["made_by"] == "tests/data/make.py"
