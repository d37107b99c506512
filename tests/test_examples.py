"""The scripts of examples/ run as they stand, on the bundled model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import regaze
from regaze.eval import load_results

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: str, folder: Path) -> str:
    """What a script prints, run in a folder without the network."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_five_short_ones_and_the_page_names_them():
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\((\w+\.py)\)", page)) == [path.name for path in SCRIPTS]
    assert len(SCRIPTS) == 5
    for path in SCRIPTS:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path.name


@pytest.mark.slow
def test_a_word_is_found_in_the_picture_that_is_given(tmp_path):
    from regaze.demo import scenes

    scenes()[10].image().resize((224, 224)).save(tmp_path / "own.png")
    assert run("heatmap_of_a_word.py", folder=tmp_path).endswith("Yes\nheatmap.png\n")
    asked = ("own.png", "Is there a bus in the image?", "bus", "--output", "bus.png")
    assert "Is there a bus in the image? Yes\n" in run("heatmap_of_a_word.py", *asked, folder=tmp_path)
    for name in ("heatmap.png", "bus.png"):
        with Image.open(tmp_path / name) as drawn:
            assert drawn.width > 500


@pytest.mark.slow
def test_masses_of_a_generation_are_stored_and_drawn(tmp_path):
    printed = run("role_masses.py", folder=tmp_path)
    record = regaze.Record.load(tmp_path / "roles.safetensors")
    assert "".join(record[0].answer_text()).strip().removesuffix("</s>") == printed.splitlines()[0]
    for name in ("roles-layers.svg", "roles-tokens.svg"):
        assert "<svg" in (tmp_path / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_methods_are_compared_with_their_controls(tmp_path):
    printed = run("compare_two_methods.py", "--pictures", "4", folder=tmp_path)
    results = load_results(tmp_path / "out" / "compare")
    assert results["complete"]
    figure = results.to_dataframe().query("figure == 'recall'").set_index("condition")
    assert set(figure[figure.kind == "method"].index) == {"SPARC", "VCD"}
    assert "drop-last-sentence" in figure.index
    assert f"{figure.value['SPARC']:.3f}" in printed
    assert (tmp_path / printed.splitlines()[-1].split(": ")[1]).is_file()


@pytest.mark.slow
def test_an_own_method_is_measured(tmp_path):
    run("own_method.py", "--pictures", "4", "--weight", "1", folder=tmp_path)
    results = load_results(tmp_path / "out" / "own-method")
    assert results["methods"] == {"not-blindly": {"method": "not-blindly", "weight": 1.0}}
    (captions,) = results["benchmarks"].values()
    assert captions["methods"]["not-blindly"]["answers_changed"] > 0


@pytest.mark.slow
def test_the_script_for_a_real_model_runs_on_the_demo(tmp_path):
    printed = run("real_model.py", "--model", "demo", folder=tmp_path)
    assert "plain: Yes\nvcd: Yes\n" in printed
    assert "<html" in (tmp_path / "look.html").read_text(encoding="utf-8")
