"""Scene questions: how answers of each kind are read, and that the questions are true of their scenes."""

from __future__ import annotations

import re

import pytest

from regaze.bed.scenes import scenes as bed_scenes
from regaze.demo import scenes as demo_scenes
from regaze.demo.phrases import NUMBERS, place
from regaze.errors import InputError
from regaze.eval import catalogue
from regaze.eval.benchmarks.scene_questions import (
    BED_KINDS,
    DEMO_KINDS,
    EXACT,
    REGAZE,
    SceneQuestions,
    SceneReference,
)

OPTIONS = ("cup", "dog", "boat", "kite")


@pytest.mark.parametrize(
    ("kind", "right", "accepted", "wrong", "unreadable"),
    [
        ("multiple choice", "B", ["B", "(b)", "B. dog", "It is a dog."], ["A", "cup"], ["", "A or B"]),
        ("relation", "No", ["No", "no.", "No, it is not."], ["Yes"], ["", "Perhaps"]),
        (
            "relation in words",
            "It is to the left of the fork.",
            ["left", "The cup is on the left of the fork."],
            ["It is above the fork."],
            ["", "It is left of and above the fork."],
        ),
        ("count", "Three", ["three", "3", "There are three animals."], ["Two", "33"], ["", "two or three"]),
        ("place", "The cup is at the top.", ["at the top", "It's at the top."], ["on the left"], ["there"]),
        ("color", "Red", ["red", "The car is red."], ["Blue."], ["", "red and blue", "dark"]),
        (
            "false premise",
            "There is no cup in the image.",
            ["There is no cup.", "There isn't one", "I cannot see it."],
            ["The cup is red.", "It is known to be left."],
            ["", " "],
        ),
    ],
)
def test_answers_are_read_as_a_person_would(kind, right, accepted, wrong, unreadable):
    reference = SceneReference(kind, right, OPTIONS)
    for answer in (right, *accepted):
        assert REGAZE.score([reference], [answer]) == {"accuracy": 1, "unreadable": 0}, answer
    for answer in wrong:
        assert REGAZE.score([reference], [answer]) == {"accuracy": 0, "unreadable": 0}, answer
    for answer in unreadable:
        assert REGAZE.score([reference], [answer]) == {"accuracy": 0, "unreadable": 1}, answer
    assert EXACT.score([reference] * 2, [right.rstrip("."), f"{right} "])["accuracy"] == 1
    assert EXACT.score([reference], [accepted[-1]])["accuracy"] == 0


def test_the_demos_questions_are_true_of_its_scenes():
    found = {scene.path: scene for scene in demo_scenes()}
    bench = SceneQuestions.of_demo()
    assert set(bench.groups()) == {*DEMO_KINDS, "all"}
    assert len(bench.groups()["false premise"]) == len(found)
    for item in bench.items:
        things = {thing.category: thing for thing in found[item.image].objects}
        named = re.search(r" is the (.+)\?", item.question)
        if item.split == "count":
            assert item.label == NUMBERS[len(things)]
        elif item.split == "place":
            assert item.label == f"The {named[1]} is {place(things[named[1]])}."
        elif item.split == "color":
            assert item.label.lower() == things[named[1]].colour
        else:
            assert named[1] not in things
    figures = bench.score({"plain": [item.label for item in bench.items]}, seed=0)
    assert {
        split: each["regaze"]["plain"]["accuracy"]["value"] for split, each in figures.items()
    } == dict.fromkeys(figures, 1)


def test_the_bed_has_the_questions_that_ship_with_it():
    bench = SceneQuestions.of_bed()
    assert set(bench.groups()) == {*BED_KINDS, "all"}
    assert {item.image for item in bench.items} == {scene.path for scene in bed_scenes()}
    assert len(bench.items) == 2672
    figures = bench.score({"plain": [item.label for item in bench.items]}, seed=0)["all"]
    assert (
        figures["regaze"]["plain"]["accuracy"]["value"] == figures["exact"]["plain"]["accuracy"]["value"] == 1
    )
    blind = bench.score({"plain": ["B"] * len(bench.items)}, seed=0)
    assert 0.15 < blind["multiple choice"]["regaze"]["plain"]["accuracy"]["value"] < 0.35


def test_a_kind_is_chosen_as_a_split():
    chosen = catalogue.make_benchmark("scenes", data="bed", settings={"splits": '["count"]', "limit": "3"})
    assert [item.split for item in chosen.items] == ["count"] * 3
    with pytest.raises(
        InputError, match=r"the demo's scenes have questions of the kinds count, .*; got relation"
    ):
        SceneQuestions.of_demo(splits=["relation"])
