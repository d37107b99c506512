"""The commands on real models: one of the demo's architecture with random weights, and the shipped one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from regaze import demo, load
from regaze.cli import app
from regaze.errors import BadParameterError

VAR = ("--method", "var", "--set", "sink_dimensions=[3,7]", "--set", "tau=2")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an untrained model of the demo's architecture."""
    from regaze.demo.training.model import build_model
    from regaze.demo.training.render import PATCH, SIDE
    from regaze.demo.training.vocabulary import build_processor

    folder = tmp_path_factory.mktemp("untrained")
    processor = build_processor(SIDE, PATCH)
    torch.manual_seed(0)
    build_model(processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def regaze(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_evaluate_plain_against_var(untrained, tmp_path):
    arguments = [
        "evaluate",
        "pope",
        "--model",
        untrained,
        *VAR,
        "--split",
        "random",
        "--limit",
        "10",
        "--json",
    ]
    result = regaze(
        *arguments, "--batch-size", "4", "--max-new-tokens", "3", "--output", str(tmp_path / "out")
    )
    assert result.exit_code == 0, result.stderr
    results = json.loads(result.stdout)
    assert results["methods"]["var"]["sink_dimensions"] == [3, 7]
    asked = results["benchmarks"]["pope"]
    for entry in (asked["plain"], asked["methods"]["var"]):
        assert entry["cost"]["forwards_per_token"] == pytest.approx(1.0, abs=0.2)
        assert entry["cost"]["seconds"] > 0
    assert len((tmp_path / "out/answers.jsonl").read_text().splitlines()) == 20
    assert "Loading" not in result.stderr


@pytest.mark.parametrize("method", ["marine", "halc"])
def test_methods_with_a_detector_run_on_the_demo(method, tmp_path):
    arguments = ["evaluate", "pope", "--model", "demo", "--split", "random", "--limit", "2", "--json"]
    arguments += ["--method", method, "--output", str(tmp_path / "out")]
    result = regaze(*arguments, "--set", "detector=demo")
    assert result.exit_code == 0, result.stderr
    results = json.loads(result.stdout)
    assert results["methods"][method]["detector"] == "demo"
    assert results["benchmarks"]["pope"]["methods"][method]["figures"]
    for given, reason in (("somebody/none", "cannot load the detector 'somebody/none'"), ("none", "give")):
        result = regaze(*arguments[:-1], str(tmp_path / given), "--set", f"detector={given}")
        assert result.exit_code == 2
        assert reason in result.stderr
        assert "Traceback" not in result.stderr


def test_a_method_that_cannot_work_on_the_model_says_so_in_one_line(untrained, tmp_path):
    arguments = ["evaluate", "pope", "--model", untrained, "--limit", "5", "--output", str(tmp_path / "out")]
    result = regaze(*arguments, "--method", "knockout", "--set", "heads=[[99, 0]]")
    assert result.exit_code == 2
    assert "regaze: error: head (99, 0) does not exist" in result.stderr
    assert not (tmp_path / "out/answers.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "vra"], "unknown method 'vra'"),
        (
            ["--method", "var", "--set", "roh=1"],
            "no parameter 'roh'; did you mean 'rho'? There are rho",
        ),
        (["--method", "var", "--set", "rho=much"], "--set rho=much: expected float"),
        (["--method", "var", "--set", "moved=3"], "moved=3: expected float in [0, 1]"),
        (["--model", "no/such-model"], "cannot load model 'no/such-model'"),
    ],
)
def test_unknown_methods_parameters_and_models(arguments, message, tmp_path):
    result = regaze("evaluate", "pope", "--output", str(tmp_path / "out"), *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_methods_are_listed_with_parameters_and_sources():
    listed = json.loads(regaze("methods", "--json").stdout)
    assert {"var", "knockout"} <= set(listed)
    kinds = {name: about["kind"] for name, about in listed.items()}
    assert (kinds["var"], kinds["near-tie"]) == ("method", "control")
    assert listed["var"]["parameters"]["rho"]["default"] == 0.5
    assert listed["var"]["source"]
    lines = regaze("methods").stdout
    assert lines.index("vista") < lines.index("Controls: ") < lines.index("near-tie")
    text = regaze("methods", *listed).stdout
    for about in listed.values():
        assert about["summary"] in lines
        assert about["source"] in text
        for parameter, entry in about["parameters"].items():
            default = entry.get("default", "...")
            if not isinstance(default, list):  # JSON's lists are tuples in the text
                assert f"--set {parameter}={default}  ({entry['type']})" in text
            assert entry["help"] in text


def test_heatmap_writes_a_picture_and_prints_the_answer(untrained, tmp_path):
    common = [
        "heatmap",
        "scene_000",
        "Is there a dog in the image?",
        "--model",
        untrained,
        "--max-new-tokens",
        "2",
    ]
    pictures = []
    for name, more in {
        "plain": [],
        "edited": list(VAR),
        "one head": ["--layers", "4,5", "--heads", "0"],
    }.items():
        path = tmp_path / f"{name}.png"
        result = regaze(*common, *more, "--output", str(path))
        assert result.exit_code == 0, result.stderr
        assert str(path) in result.stderr
        assert len(result.stdout.splitlines()) == 1
        pictures.append(np.asarray(Image.open(path)))
    assert pictures[0].std() > 10
    assert pictures[0].shape != pictures[2].shape or (pictures[0] != pictures[2]).any()
    assert regaze(*common, "--output", str(tmp_path / "new/heat.svg")).exit_code == 0
    assert (tmp_path / "new/heat.svg").stat().st_size > 1000


def test_a_model_whose_weights_are_cut_short(untrained, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(untrained, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    result = regaze("heatmap", "scene_000", "What?", "--model", str(folder))
    assert result.exit_code == 2
    assert "regaze: error: cannot load model" in result.stderr
    with pytest.raises(BadParameterError, match=r"with colour: .*'colour'"):
        load(untrained, colour="red")


@pytest.mark.parametrize(
    "command",
    [
        ["heatmap", "scene_000", "What?", "--output", "new/heat.png", "--model"],
        ["view", "scene_000", "What?", "--output", "new/view.html", "--model"],
        ["heads", "--haystack", "book.txt", "--output", "new/heads"],
    ],
    ids=lambda command: command[0],
)
def test_a_model_that_cannot_be_loaded_leaves_nothing(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("A long text. " * 100)
    Path("model").mkdir()
    result = regaze(*command, "model")
    assert result.exit_code == 2
    assert "cannot load model 'model'" in result.stderr
    assert sorted(os.listdir()) == ["book.txt", "model"]
    Path("new").write_text("")  # what cannot be written is named before the model is loaded
    assert "cannot be written: new is no folder" in regaze(*command, "model").stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layers", "9"], "layers [9] do not exist"),
        (["--heads", "6"], "head 6 was not recorded; the record has 0..5"),
        (["--heads", "a"], "--heads a: expected numbers"),
        (["--token", "²"], "the word '²' occurs neither"),
        (["--token", "50"], "answer token 50 was not recorded"),
    ],
)
def test_heatmap_of_what_is_not_there(untrained, tmp_path, more, message):
    common = ["heatmap", "scene_000", "What?", "--model", untrained, "--max-new-tokens", "2"]
    result = regaze(*common, "--output", str(tmp_path / "x.png"), *more)
    assert result.exit_code == 2
    assert message in result.stderr


def test_python_m_regaze_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "regaze", "evaluate", "pope", "--method", "nonsense"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(demo.__file__).parents[2])},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"regaze: error: unknown method 'nonsense'.*\n", done.stderr)


@pytest.mark.slow
@pytest.mark.skipif(not demo.MODEL_DIR.is_dir(), reason="the demo model is not in this checkout")
def test_demo_shows_a_method_that_acts_and_what_it_costs(tmp_path):
    result = regaze("demo", "--output", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("POPE adversarial"))
    assert re.search(r"accuracy plain 9\d\.\d \[.*\], var 9\d\.\d .* of 634 answers differ$", line)
    captions = json.loads((tmp_path / "captions" / "results.json").read_text())["benchmarks"]["captions"]
    sparc = captions["methods"]["sparc"]
    difference = sparc["figures"]["captions"]["chair"]["difference"]
    assert difference["chair_s"]["high"] < 0
    assert f"Confounds: {', '.join(sparc['flags'])}" in result.stdout
    assert any("repetition" in flag for flag in sparc["flags"])
    assert max(len(line.rstrip()) for line in result.stdout.splitlines() if not line.startswith("POPE")) <= 80
    assert Image.open(tmp_path / "heatmap.png").size[0] > 300
    page = (tmp_path / "view.html").read_text(encoding="utf-8")
    assert "sparc" in page.lower()
    for path in ("yes-no/report.html", "captions/report.html"):
        assert (tmp_path / path).is_file()
    assert result.stderr.splitlines()[-1].endswith("view.html")
