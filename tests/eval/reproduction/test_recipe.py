"""The form of recipes, and the recipes of the package."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from regaze.errors import InputError
from regaze.eval.reproduction import recipe

NAMES = recipe.names()
DEMO = "demo-pope-vcd"


@pytest.fixture
def content() -> dict[str, Any]:
    """A recipe's YAML."""
    return yaml.safe_load((recipe.FOLDER / f"{DEMO}.yaml").read_text(encoding="utf-8"))


def parsed(content: dict[str, Any]) -> recipe.Recipe:
    return recipe.parse(yaml.safe_dump(content), Path(f"{DEMO}.yaml"))


def test_there_are_enough_and_most_are_of_published_tables():
    assert len(NAMES) >= 25
    assert sum(not name.startswith("demo-") for name in NAMES) >= 25


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_of_the_package_has_its_form(name):
    made = recipe.load(name)
    assert made.recipe == name
    assert made.source.where
    if made.method is not None:
        assert made.method.source


def test_figures_of_the_demo_are_those_of_the_committed_comparison(content):
    (accuracy,) = (each for each in recipe.load(DEMO).published if each.figure == "accuracy")
    assert (accuracy.plain, accuracy.method) == (91.6, 92.1)  # docs/comparison.md


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("scorer"), "scorer: Field required"),
        (lambda r: r.update(wall_time=3), "wall_time: Extra inputs are not permitted"),
        (
            lambda r: r["decoding"].update(max_new_tokens=0),
            "decoding.max_new_tokens: .* greater than or equal",
        ),
        (lambda r: r["decoding"].update(temperature=1.0), "decoding: .*temperature needs do_sample"),
        (
            lambda r: r["decoding"].update(do_sample=True, top_p=7.0),
            "top_p: .*less than or equal to 1",
        ),
        (lambda r: r["decoding"].update(do_sample=True, num_beams=3), "beams are not sampled"),
        (lambda r: r["source"].update(trust="E"), "source.trust"),
        (lambda r: r["published"][0].update(split="popular"), "no split 'popular'"),
        (lambda r: r["published"][0].update(plain=None, method=None), "has no value"),
        (lambda r: r.pop("method"), "a figure of a method"),
        (lambda r: r.update(published=[]), "published: .*at least 1"),
        (lambda r: r["prompt"].update(format="USER: {question}"), "needs <image> and {question} once each"),
        (lambda r: r["prompt"].update(format="{question} <image>"), "<image> comes before"),
        (lambda r: r["prompt"].update(system="Be brief."), "prompt.system needs prompt.format"),
        (lambda r: r["benchmark"].update(questions_sha256="abc"), "questions_sha256: .*pattern"),
        (lambda r: r.update(unknown={"colour": "red"}), "no field 'colour'"),
        (lambda r: r.update(recipe="another"), "'another' is not the name of the file"),
    ],
)
def test_what_is_no_recipe_is_named(content, change, message):
    assert parsed(copy.deepcopy(content)).recipe == DEMO
    change(content)
    with pytest.raises(InputError, match=message):
        parsed(content)


def test_a_name_or_a_file(tmp_path, content):
    with pytest.raises(InputError, match="unknown recipe 'demo-pop'"):
        recipe.load("demo-pop")
    with pytest.raises(InputError, match="mine"):
        recipe.load(str(tmp_path / "mine.yaml"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, "recipe": "mine"}))
    assert recipe.load(str(path)).recipe == "mine"
    assert recipe.sha256_of(str(path)) != recipe.sha256_of(DEMO)


def test_arguments_of_generate_leave_out_defaults():
    decoding = recipe.Decoding(max_new_tokens=10, do_sample=True, temperature=1.0, seed=42)
    assert decoding.arguments() == {"max_new_tokens": 10, "do_sample": True, "temperature": 1.0}
    assert recipe.Decoding(max_new_tokens=10).arguments() == {"max_new_tokens": 10}
