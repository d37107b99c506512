"""Benchmarks about the bed's scenes: who is asked them, what is asked, and that the truth gets full marks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from regaze import demo
from regaze.bed.scenes import BED, IMAGE_DIR, scenes
from regaze.cli.damage import find_task
from regaze.demo.phrases import existence_question
from regaze.demo.shipped import DEMO
from regaze.errors import InputError
from regaze.eval import EvalTask, catalogue
from regaze.eval.benchmarks.amber.benchmark import Amber
from regaze.eval.benchmarks.beaf.benchmark import Beaf
from regaze.eval.benchmarks.beaf.demo import redrawn

SCENES = {scene.path: scene for scene in scenes()}
#: benchmark -> a figure of its last scorer that is 1 or 100 for right answers
PERFECT = {
    "pope": "accuracy",
    "repope": "accuracy",
    "mme": "hallucination",
    "dash-b": "accuracy",
    "crpe": "questions",
    "mmstar": "accuracy",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))


@pytest.mark.parametrize("name", [*PERFECT, "captions", "amber"])
def test_the_bed_is_asked_about_its_own_scenes_and_others_about_the_demos(name):
    for model, folder in (("bed", IMAGE_DIR), ("demo", demo.IMAGE_DIR), ("some/model", demo.IMAGE_DIR)):
        asked = catalogue.make_benchmark(name, model=model, settings={"limit": "3"})
        assert {item.image.parent for item in asked.items} == {folder}
    asked = catalogue.make_benchmark(name, model="demo", data="bed", settings={"limit": "3"})
    assert {item.image.parent for item in asked.items} == {IMAGE_DIR}


def test_a_benchmark_without_shipped_scenes_says_so():
    with pytest.raises(InputError, match="textvqa has no questions about the scenes of the bed: give --data"):
        catalogue.make_benchmark("textvqa", data="bed")
    with pytest.raises(InputError, match="textvqa: no questions; get them from"):
        catalogue.make_benchmark("textvqa", model="bed")


@pytest.mark.parametrize("name", PERFECT)
def test_right_answers_have_full_marks(name):
    bench = catalogue.make_benchmark(name, model="bed", settings={"limit": "24"})
    right = [item.reference.repope or "no" if name == "repope" else item.label for item in bench.items]
    if name == "crpe":
        right = [item.reference.letter for item in bench.items]
    if name == "mmstar":
        right = [item.reference.options["ABCD".index(item.label)] for item in bench.items]
    figures = bench.score({"plain": right}, seed=0)
    split = "all" if "all" in figures else next(iter(figures))
    scored = figures[split]["repope" if name == "repope" else bench.scorers()[-1].name]["plain"]
    found = next(
        scored[each]["value"] for each in (PERFECT[name], f"repope_{PERFECT[name]}") if each in scored
    )
    assert found == {"mme": 800.0}.get(name, 1.0)


def test_amber_asks_about_existence_attributes_and_relations():
    bench = Amber.of_bed(task="d")
    assert {item.split for item in bench.items} == {
        f"discriminative-{kind}" for kind in ("existence", "state", "number", "relation")
    }
    for item in bench.items:
        scene, yes = SCENES[item.image], item.label == "yes"
        things = {thing.category: thing for thing in scene.objects}
        if item.split.endswith("existence"):
            assert yes == any(existence_question(name) == item.question for name in things)
        elif item.split.endswith("state"):
            named = [f"{thing.colour} {thing.category}" for thing in scene.objects if thing.colour]
            assert yes == any(existence_question(name) == item.question for name in named)
        elif item.split.endswith("number"):
            words = ("no", "one", "two", "three", "four", "five", "six")
            assert yes == (words[len(things)] in item.question.split())
        else:
            first, side, second = re.fullmatch(
                r"Is the (.+) to the (left|right) of the (.+)\?", item.question
            ).groups()
            is_left = things[first].centre[0] <= things[second].centre[0]
            assert yes == (is_left == (side == "left"))
    labels = [item.label for item in bench.items]
    assert labels.count("yes") == labels.count("no")
    scored = bench.score({"plain": [label.capitalize() for label in labels]}, seed=0)["d"]["official"][
        "plain"
    ]
    assert scored["accuracy"]["value"] == pytest.approx(100, abs=0.1)
    assert {item.max_new_tokens for item in Amber.of_bed(2).items} == {192}


@pytest.mark.parametrize("shipped", [DEMO, BED], ids=lambda each: each.name)
def test_a_copy_differs_from_its_scene_in_the_box_of_what_it_lacks_alone(shipped):
    for scene in [each for each in shipped.scenes() if len(each.objects) > 1][:8]:
        before = np.asarray(scene.image(), np.float64)
        for thing in sorted(scene.objects, key=lambda each: -each.area)[:2]:
            after = np.asarray(redrawn(shipped, scene, thing), np.float64)
            x0, y0, x1, y1 = thing.box
            changed = np.abs(after - before).max(-1) > 0
            assert changed[y0:y1, x0:x1].mean() > 0.5
            changed[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = False
            assert not changed.any()


def test_what_lies_behind_is_there_for_the_two_largest_objects():
    for shipped in (DEMO, BED):
        expected = set()
        for scene in shipped.scenes():
            largest = sorted(scene.objects, key=lambda thing: thing.area, reverse=True)[:2]
            expected |= {shipped.behind(scene, thing) for thing in largest}
        assert set((shipped.folder / "behind").iterdir()) == expected


def test_the_same_is_asked_of_a_scene_and_of_its_copies():
    bench = Beaf.of_bed(limit=200)
    pairs = 0
    for item in bench.items:
        with Image.open(item.image) as image:
            assert image.size == (112, 112)
        pairs += item.reference.taken_away
    assert pairs == len({item.image for item in bench.items}) - len({bench.cluster(i) for i in bench.items})
    figures = bench.score({"plain": [item.label for item in bench.items]}, seed=0)["bed"]["regaze"]["plain"]
    assert figures["TU"]["value"] == figures["F1_TUID"]["value"] == 100
    yes = bench.score({"plain": ["yes"] * len(bench.items)}, seed=0)["bed"]["regaze"]["plain"]
    assert (yes["TU"]["value"], yes["SBp"]["value"]) == (0, 100)


def test_the_damage_check_of_the_bed_is_about_its_scenes():
    task = EvalTask(catalogue.make_benchmark("pope", model="bed", settings={"limit": "2"}))
    check = find_task([task], "bed", None, None)
    assert {item.image.parent for item in check.benchmark.items} == {IMAGE_DIR}
    assert len(check.benchmark.items) == 400
