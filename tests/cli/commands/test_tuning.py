"""`regaze compare --tune` and `regaze sweep`: what they print and write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from standins import StandIn
from typer.testing import CliRunner, Result

from regaze.cli import app, grids, models
from regaze.interventions import GIFT, HeadKnockout


@pytest.fixture
def gaze() -> StandIn:
    return StandIn()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gaze: StandIn) -> Path:
    """The official files of POPE about eight images; models become stand-ins."""
    monkeypatch.setattr(models, "load_model", lambda *given, **more: gaze)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for shade, name in enumerate("abcdefgh"):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / "images" / f"{name}.png")
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"image": f"{name}.png", "text": f"Is there a {split} {label}?", "label": label}
            for name in "abcdefgh"
            for label in ("yes", "no")
        ]
        text = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"coco_pope_{split}.json").write_text(text)
    return tmp_path


def regaze(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def good(*args: str) -> Result:
    result = regaze(*args)
    assert result.exit_code == 0, result.stderr
    return result


COMPARE = ("compare", "pope", "--data", ".", "--tune", "gift:alpha=1,2,4")
SWEEP = ("sweep", "pope", "--data", ".", "--method", "gift")


def test_the_result_holds_grid_trials_and_choice(files, gaze):
    more = ("--tune", "gift:beta=1,2", "--tune", "vcd:alpha=0.5,1,1.5", "--tune-trials", "3")
    result = good(*COMPARE, *more, "--methods", "gift,vcd,var", "--tune-split", "popular", "--output", "out")
    results = json.loads((files / "out/results.json").read_text())
    tuning = results["tuning"]
    assert tuning["methods"]["gift"]["grid"] == {"alpha": [1, 2, 4], "beta": [1, 2]}
    assert tuning["methods"]["gift"]["combinations"] == 6
    assert [len(each["trials"]) for each in tuning["methods"].values()] == [3, 3]
    assert (tuning["questions"], tuning["images"], tuning["not_used"]) == (8, 4, 24)
    assert tuning["benchmark"]["questions"] == 8
    figures = results["benchmarks"]["pope"]["methods"]["gift"]["figures"]
    assert list(figures) == ["random", "adversarial", "all"]
    assert figures["all"]["questions"] == 16
    note = "Images that are tuned on may not be tested on: 4 of them were drawn"
    assert note in result.stderr
    for page in (result.stdout, (files / "out/report.md").read_text()):
        assert note in page
        assert "8 questions about 4 images of pope, by accuracy (official scorer, popular; more is" in page
        assert "Trials: gift 3, vcd 3, var 1." in page
        assert "| var | 1 | as given |" in page
        assert "(3 are equal)" in page  # the stand-in answers the same under every method
    assert "Parameters, chosen apart from testing" in (files / "out/report.html").read_text()


def test_without_methods_those_are_run_that_are_tuned(files):
    result = good(*COMPARE, "--tune", "VAR:moved=0.5,0.6", "--json")
    results = json.loads(result.stdout)
    assert list(results["methods"]) == ["gift", "var"]
    assert results["tuning"]["split"] == "half"
    [folder] = (files / "out").iterdir()
    saved = yaml.safe_load((folder / "run.yaml").read_text())
    assert saved["methods"] == "gift,VAR"
    assert saved["tune"] == {"gift:alpha": "1,2,4", "VAR:moved": "0.5,0.6"}


def test_run_yaml_is_the_same_run_again_and_lists_are_values(files, gaze):
    good(*COMPARE, "--tune", "gift:layers=[0,1],none", "--tune-criterion", "f1", "--tune-seed", "3")
    [folder] = (files / "out").iterdir()
    asked = len(gaze.prompts)
    again = good("compare", "--config", str(folder / "run.yaml"), "--json")
    assert len(gaze.prompts) == asked
    assert len(list((files / "out").iterdir())) == 1
    tuning = json.loads(again.stdout)["tuning"]
    assert tuning["methods"]["gift"]["grid"] == {"alpha": [1, 2, 4], "layers": [[0, 1], None]}
    (files / "mine.yaml").write_text("tune: {gift:alpha: [1, 2, 4], gift:layers: [[0, 1], null]}\n")
    given = ("--config", "mine.yaml", "--tune-criterion", "f1", "--tune-seed", "3")
    written = json.loads(good("compare", "pope", "--data", ".", *given, "--json").stdout)
    assert written["tuning"] == tuning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tune", "gitf:alpha=1"), "unknown method 'gitf'; did you mean 'gift'?"),
        (
            ("--tune", "gift:alhpa=1"),
            "--tune gift:alhpa=1: no parameter 'alhpa'; did you mean 'alpha'?",
        ),
        (("--tune", "gift:alpha="), "--tune gift:alpha=: a value is missing; expected such as alpha=1,2,4"),
        (("--tune", "gift:alpha=1,,2"), "a value is missing"),
        (("--tune", "gift:alpha=1,strong"), "--tune gift:alpha=strong: expected float >= 0 or None"),
        (("--tune", "gift:alpha=1,-1"), "--tune gift:alpha=-1: expected float >= 0 or None"),
        (("--tune", "gift:alpha=1,1.0"), "gift: alpha=1 comes twice in the grid"),
        (("--tune", "gift:alpha=1", "--tune", "gift:alpha=2"), "alpha was given before"),
        (("--tune", "alpha=1"), "--tune alpha=1: expected METHOD:NAME=VALUES such as gift:alpha=1,2,4"),
        (("--tune", "gift:alpha"), "expected METHOD:NAME=VALUES"),
        (
            ("--methods", "var", "--tune", "gift:alpha=1"),
            "'gift' is not among the methods that are",
        ),
        (
            ("--tune", "gift:alpha=1", "--tune-split", "rare"),
            "pope has no split 'rare' to tune on",
        ),
        (("--tune", "gift:alpha=1", "--tune-criterion", "yes_ratio"), "neither more nor less of yes_ratio"),
        (
            ("--tune", "gift:alpha=1", "--tune-criterion", "best"),
            "criterion best: pope has the figures",
        ),
        (("--tune", "gift:alpha=1,2", "--tune-trials", "3"), "the grid of gift has 2 combinations"),
        (
            ("--methods", "var", "--tune-split", "popular"),
            "--tune-split popular: nothing is tuned",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_tuned_is_one_line_before_the_model_is_loaded(files, gaze, arguments, message):
    result = regaze("compare", "pope", "--data", ".", *arguments)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert message in line
    assert gaze.prompts == []
    assert not (files / "out").exists() or not list((files / "out").iterdir())


def test_a_sweep_prints_a_table_and_draws_the_curves(files, gaze):
    result = good(
        *SWEEP, "--grid", "alpha=0.5,1,2", "--set", "beta=2", "--split", "popular", "--output", "out"
    )
    assert "|  | accuracy | recall | yes-ratio | words | p | Holm p | changed |" in result.stdout
    for label in ("plain", "alpha=0.5", "alpha=1", "alpha=2"):
        assert f"| {label} | " in result.stdout
    results = json.loads((files / "out/results.json").read_text())
    assert results["sweep"]["points"] == {
        f"alpha={text}": {"alpha": float(text)} for text in ("0.5", "1", "2")
    }
    assert {each["beta"] for each in results["methods"].values()} == {2.0}
    assert results["tuning"] is None
    for name in ("pope-sweep.svg", "pope-sweep.png"):
        assert (files / "out/plots" / name).exists()
    assert "plots/pope-sweep.svg" in (files / "out/report.md").read_text()
    asked = len(gaze.prompts)
    again = good("sweep", "--config", "out/run.yaml", "--output", "out", "--json", "pope")
    assert json.loads(again.stdout)["benchmarks"] == results["benchmarks"]
    assert len(gaze.prompts) == asked


def test_a_neutral_value_that_is_not_is_named(files):
    result = good(*SWEEP, "--grid", "alpha=0", "--output", "out")  # the stand-in says no under any method
    assert (
        "alpha=0 should change nothing, but changed 48 answers (pope): please report this." in result.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "none", "--grid", "alpha=1"), "--method none: there is no parameter to vary"),
        (("--method", "gift"), "no values to try: add --grid, such as --grid alpha=1,2,4"),
        (("--method", "gift", "--grid", "alpha"), "--grid alpha: expected NAME=VALUES such as alpha=0,1,2,4"),
        (
            ("--method", "gift", "--grid", "gamma=1"),
            "--grid gamma=1: no parameter 'gamma'; there are alpha",
        ),
        (("--method", "gift", "--grid", "alpha=x"), "--grid alpha=x: expected float >= 0 or None"),
        (("--method", "gift", "--grid", "alpha=2,2"), "gift: alpha=2 comes twice in the grid"),
        (("--method", "gift", "--grid", "alpha=1", "--split", "rare"), "got 'coco', 'head', rare"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_swept_is_one_line(files, gaze, arguments, message):
    result = regaze("sweep", "pope", "--data", ".", *arguments)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert message in line
    assert gaze.prompts == []


def test_values_are_parted_by_commas_outside_of_brackets():
    assert grids.split_values("[[0,0],[0,3]], [], none") == ["[[0,0],[0,3]]", "[]", "none"]
    grid = grids.read_grid(["heads=[[0,0],[0,3]],[]"], HeadKnockout())
    assert grid == {"heads": [((0, 0), (0, 3)), ()]}
    grid = grids.read_grid(["saliency_layer=auto,3,[1,2],none"], GIFT())
    assert grid == {"saliency_layer": ["auto", 3, (1, 2), None]}
    assert grids.split_grid("a/b.py:Mine:alpha=x=1") == ("a/b.py:Mine", "alpha", "x=1")
