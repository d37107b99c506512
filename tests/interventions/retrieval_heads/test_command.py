"""`regaze heads`, and the picture of the scores."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from copying_model import (
    HAYSTACK,
    NEEDLE,
    RETRIEVAL,
)
from typer.testing import CliRunner

from regaze.cli import app
from regaze.errors import BadParameterError
from regaze.interventions.retrieval_heads import (
    RetrievalHeads,
)
from regaze.toolkit import plot


@pytest.fixture(scope="module")
def folder(copier, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "copier"
    copier.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path.parent / "hay.txt").write_text(HAYSTACK)
    needle = {"text": NEEDLE.text, "question": NEEDLE.question, "answer": NEEDLE.answer, "cue": NEEDLE.cue}
    (path.parent / "needles.json").write_text(json.dumps([needle]))
    return path


def command(folder: Path, *more: str):
    files = ["--haystack", str(folder.parent / "hay.txt"), "--needles", str(folder.parent / "needles.json")]
    sizes = ["--lengths", "100,150", "--depths", "0,50", "--max-new-tokens", "8"]
    return CliRunner().invoke(app, ["heads", str(folder), *files, *sizes, *more])


def test_command(folder, tmp_path):
    result = command(folder, "--output", str(tmp_path / "out"), "--top", "3")
    assert result.exit_code == 0, result.output
    assert "copier: 4 of 4 trials succeeded; 8 heads" in result.output
    assert "score at least 0.5: 1 (12.5%)" in result.output
    assert re.search(r"1 +2 +1\.000 +1\.000 +100%", result.output)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "heads.json",
        "heads.png",
        "heads_released.json",
        "trials.jsonl",
    ]
    assert RetrievalHeads.load(tmp_path / "out/heads.json").top(1) == [RETRIEVAL]
    again = command(folder, "--output", str(tmp_path / "out"), "--json")
    assert json.loads(again.stdout)["released"][1][2] == 1.0
    assert len((tmp_path / "out/trials.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lengths", "many"), "--lengths many: expected numbers such as"),
        (("--score", "mine"), "--score mine: expected paper or released"),
        (("--haystack", "nowhere.txt"), "haystack nowhere.txt cannot be read: No such file"),
        (("--needles", "nowhere.json"), "--needles nowhere.json cannot be read: No such file"),
        (("--lengths", "9"), "length 9 is too short"),
    ],
)
def test_command_refuses_in_one_line(folder, tmp_path, arguments, message):
    result = command(folder, "--output", str(tmp_path), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_picture_of_the_scores(found, tmp_path):
    figure = plot.head_scores(found.mean(), marked=[RETRIEVAL], label="score", path=tmp_path / "heads.png")
    axes, bar = figure.axes
    assert axes.images[0].get_array().tolist() == found.mean().tolist()
    assert axes.images[0].get_clim() == (0, 1)
    (frame,) = axes.patches
    assert (frame.get_y(), frame.get_x()) == (RETRIEVAL[0] - 0.5, RETRIEVAL[1] - 0.5)
    assert bar.get_ylabel() == "score"
    assert (tmp_path / "heads.png").stat().st_size > 1000
    with pytest.raises(BadParameterError, match=r"scores must be \[layers, Hq\]"):
        plot.head_scores(torch.zeros(3))
    with pytest.raises(BadParameterError, match="head 4"):
        plot.head_scores(found.mean(), marked=[(0, 4)])
