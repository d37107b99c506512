"""`regaze objects`: boxes on the terminal, a picture, and errors before a model is loaded."""

from __future__ import annotations

import pytest
from PIL import Image
from typer.testing import CliRunner

from regaze.cli import app


def run(*arguments: str):
    return CliRunner().invoke(app, ["objects", *arguments])


def test_boxes_and_a_picture(tmp_path):
    picture = tmp_path / "found" / "objects.png"
    result = run("scene_012", "--words", "dog, skis", "--map", "relevance", "--output", str(picture))
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if line.endswith((" dog", " skis"))]
    assert sorted(line[-1] for line in lines) == ["dog", "skis"]
    assert all(0 < float(line[0]) <= 1 and len(line) == 6 for line in lines)
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "image nothing does not exist"),
        (["scene_012", "--output", "objects.txt"], "expected a name that ends in .png, .pdf, .svg"),
        (["scene_012", "--scales", "all"], "--scales all: expected numbers"),
        (["scene_012", "--scales", "2"], "scales are shares of the image's sides"),
        (["scene_012", "--map", "warm"], "map 'warm': expected one of flow, relevance, rollout"),
        (["scene_012", "--question", "Where is the {}?"], "asks about words: give some"),
        (["scene_012", "--segmenter", "no/such/sam"], "cannot load the segmenter 'no/such/sam'"),
    ],
)
def test_errors(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
