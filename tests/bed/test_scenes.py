"""The bed's shipped scenes and questions; needs neither the emoji font nor a model."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from glyphs import needs_font

from regaze import demo
from regaze.bed.scenes import DATA_DIR, IMAGE_DIR, QUESTIONS_FILE, TEXT_FILE, questions_file, scenes
from regaze.bed.training.build import FALSE_PREMISES, SEED, questions
from regaze.bed.training.conversations import HELD_OUT_COLOURS
from regaze.demo.phrases import existence_question
from regaze.demo.training.questions import SPLITS
from regaze.demo.training.render import render_scene
from regaze.demo.world import CATEGORIES
from regaze.errors import RegazeError

PRESENT = {scene.name: [thing.category for thing in scene.objects] for scene in scenes()}


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scenes():
    assert len(scenes()) == len(PRESENT) == 400
    assert {file.name for file in IMAGE_DIR.iterdir()} == set(PRESENT)
    assert all(1 <= len(set(names)) == len(names) <= 5 for names in PRESENT.values())
    image = scenes()[7].image()
    assert (image.size, image.mode) == ((112, 112), "RGB")
    assert not {scene.objects for scene in scenes()} & {scene.objects for scene in demo.scenes()}


def test_they_are_small():
    assert sum(file.stat().st_size for file in DATA_DIR.rglob("*") if file.is_file()) < 3_000_000


@needs_font
def test_they_are_the_drawn_ones():
    for index in (0, 200, 399):
        shipped, drawn = scenes()[index], render_scene(SEED, "shipped", index)
        assert shipped.objects == drawn.objects
        assert np.abs(np.asarray(shipped.image()).astype(int) - drawn.pixels.astype(int)).mean() < 10
        entries = [entry for entry in lines(QUESTIONS_FILE) if entry["image"] == shipped.name]
        made = questions(drawn, index, np.random.default_rng([SEED, 4_000, index]))
        assert [e["text"] for e in entries] == [e["text"] for e in made]


@pytest.mark.parametrize("split", SPLITS)
def test_pope_questions_have_true_labels(split):
    asked = defaultdict(list)
    for number, entry in enumerate(lines(questions_file(split)), start=1):
        assert entry["question_id"] == number
        category = next(name for name in CATEGORIES if existence_question(name) == entry["text"])
        assert (category in PRESENT[entry["image"]]) == (entry["label"] == "yes")
        asked[entry["image"]].append(category)
    assert set(asked) == set(PRESENT)
    assert all(len(set(names)) == len(names) for names in asked.values())


def test_unknown_split():
    with pytest.raises(RegazeError, match="the bed has no POPE split 'hard'"):
        questions_file("hard")


def test_other_questions():
    entries = lines(QUESTIONS_FILE)
    kinds = Counter(entry["kind"] for entry in entries)
    assert kinds["multiple choice"] == 400
    assert kinds["count"] == kinds["false premise"] == 800
    assert kinds["relation"] == kinds["relation in words"] > 200
    letters = Counter(entry["answer"] for entry in entries if entry["kind"] == "multiple choice")
    assert set(letters) == {*"ABCD"}
    assert min(letters.values()) > 60
    said = Counter(entry["answer"] for entry in entries if entry["kind"] == "relation")
    assert 0.4 < said["Yes"] / said.total() < 0.6


def test_false_premises_are_false():
    forms, held_out = Counter(), Counter()
    for entry in lines(QUESTIONS_FILE):
        if entry["kind"] == "false premise":
            found = re.match(r"(?:Where|What color) is the (.+?)(?: relative to the (.+))?\?", entry["text"])
            assert found, entry
            assert found[1] not in PRESENT[entry["image"]]
            assert found[2] is None or found[2] in PRESENT[entry["image"]]
            assert entry["answer"] == f"There is no {found[1]} in the image."
            forms[entry["form"]] += 1
            if entry["form"].startswith("colour"):
                held_out[entry["form"], found[1] in HELD_OUT_COLOURS] += 1
    assert forms == dict.fromkeys(FALSE_PREMISES, 200)
    assert held_out == {("colour", False): 200, ("colour held out", True): 200}


def test_text_without_an_image():
    content = json.loads(TEXT_FILE.read_text())
    assert len(content["questions"]) == 20
    assert sum(len(passage.split()) for passage in content["passages"]) > 500
