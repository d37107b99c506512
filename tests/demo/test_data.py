"""The shipped scenes and question files; needs neither the emoji font nor the model."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest
from glyphs import needs_font

import regaze.demo as demo
from regaze.demo.phrases import existence_question
from regaze.demo.training import render
from regaze.demo.training.questions import SPLITS
from regaze.demo.world import CATEGORIES, SCENE_TYPES
from regaze.errors import RegazeError


def entries(split: str) -> list[dict]:
    return [json.loads(line) for line in demo.questions_file(split).read_text().splitlines()]


def test_scenes():
    scenes = demo.scenes()
    assert len(scenes) == 120
    assert len({scene.name for scene in scenes}) == 120
    for scene in scenes:
        assert scene.path.parent == demo.IMAGE_DIR
        assert scene.path.is_file()
        assert scene.scene_type in SCENE_TYPES
        assert 1 <= len(scene.objects) <= 5
        assert len({thing.category for thing in scene.objects}) == len(scene.objects)
        assert {thing.category for thing in scene.objects} <= set(CATEGORIES)
    assert scenes[0].image().size == (112, 112)
    assert scenes[0].image().mode == "RGB"


def test_images_are_small():
    assert sum(file.stat().st_size for file in demo.IMAGE_DIR.iterdir()) <= 1_500_000
    assert {file.name for file in demo.IMAGE_DIR.iterdir()} == {scene.name for scene in demo.scenes()}


@needs_font
def test_shipped_scenes_are_the_drawn_ones():
    for index in (0, 57, 119):
        shipped, drawn = demo.scenes()[index], render.render_scene(0, "shipped", index)
        assert shipped.objects == drawn.objects
        difference = np.abs(np.asarray(shipped.image()).astype(int) - drawn.pixels.astype(int))
        assert difference.mean() < 8, "webp is lossy, but not that lossy"


@pytest.mark.parametrize("split", SPLITS)
def test_questions_have_the_official_format_and_true_labels(split):
    present = {scene.name: [thing.category for thing in scene.objects] for scene in demo.scenes()}
    by_image = defaultdict(list)
    for number, entry in enumerate(entries(split), start=1):
        assert list(entry) == ["question_id", "image", "text", "label"]
        assert entry["question_id"] == number
        assert entry["label"] == ("yes", "no")[(number - 1) % 2]
        asked = next(name for name in CATEGORIES if existence_question(name) == entry["text"])
        assert (asked in present[entry["image"]]) == (entry["label"] == "yes")
        by_image[entry["image"]].append(asked)
    assert set(by_image) == set(present)
    for image, asked in by_image.items():
        assert len(asked) == len(set(asked)) == 2 * min(3, len(present[image]))


def test_splits_share_the_positives():
    yes = [[(e["image"], e["text"]) for e in entries(split) if e["label"] == "yes"] for split in SPLITS]
    no = [[(e["image"], e["text"]) for e in entries(split) if e["label"] == "no"] for split in SPLITS]
    assert yes[0] == yes[1] == yes[2]
    assert no[0] != no[1] != no[2]


def test_unknown_split():
    with pytest.raises(RegazeError, match="random, popular, adversarial"):
        demo.questions_file("hard")
