"""Recipes checked without weights: all of the package's, and mistakes of every kind."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from paths import SHARED

from regaze.errors import UnknownParameterError
from regaze.eval.benchmarks import load_class
from regaze.eval.reproduction import dry_run, ledger, questions, recipe
from regaze.eval.reproduction.recipe import Recipe

POPE = SHARED / "benchmarks/data/pope"
OF_POPE = [
    made for made in recipe.load_all() if made.benchmark.name == "pope" and made.benchmark.data == "files"
]


def checked(changed: Recipe, **options) -> dict[str, list[str]]:
    """{state: what was found}."""
    found: dict[str, list[str]] = {}
    for check in dry_run.dry_run(changed, **options):
        found.setdefault(check.state, []).append(f"{check.part}: {check.found}")
    return found


def changed(recipe_name: str, part: str | None = None, /, **values) -> Recipe:
    """A recipe with other values, of itself or of one of its parts."""
    made = recipe.load(recipe_name)
    update = values if part is None else {part: getattr(made, part).model_copy(update=values)}
    return made.model_copy(update=update)


@pytest.mark.parametrize("name", recipe.names())
def test_no_recipe_of_the_package_is_wrong(name, tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    found = checked(recipe.load(name))
    assert found.get("wrong", []) == []
    assert found["ok"]
    if name.startswith("demo-"):  # everything is at hand
        assert found.keys() == {"ok"}
    else:
        assert any(each.startswith("prompt: ") for each in found["unknown"])  # no processor is here


@pytest.mark.parametrize("name", ["pope", "chair"])
def test_what_a_benchmark_declares_is_what_its_demo_has(name):
    cls = load_class(name)
    made = cls.of_demo(limit=2)
    known = cls.known_figures()
    assert {scorer.name for scorer in made.scorers()} <= known.keys()
    for scorer in made.scorers():
        assert set(scorer.metrics) <= set(known[scorer.name])
    assert set(made.groups()) - {"all"} <= set(cls.splits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: changed("demo-pope-vcd", "method", parameters={"noise": 500}),
            "method: .*no parameter 'noise'",
        ),
        (lambda: changed("demo-pope-vcd", "method", parameters={"alpha": "much"}), "method: .*alpha"),
        (lambda: changed("demo-pope-vcd", "method", name="vdc"), "method: unknown method 'vdc'"),
        (lambda: changed("demo-pope", scorer="officer"), "scorer: no scorer 'officer'"),
        (lambda: changed("llava15-7b-mme", scorer="opera"), "scorer: no scorer 'opera'"),
        (lambda: changed("demo-pope", "benchmark", name="poppe"), "questions: unknown benchmark 'poppe'"),
        (
            lambda: changed("demo-pope", "benchmark", options={"lim": 3}),
            "questions: pope has no option 'lim'",
        ),
        (
            lambda: changed("llava15-7b-mme", "benchmark", options={"llava": "maybe"}),
            "questions: .*llava=maybe",
        ),
        (
            lambda: changed("llava15-7b-pope", "benchmark", versions=("first",)),
            "questions: no version 'first'",
        ),
        (lambda: changed("llava15-7b-mme", "benchmark", splits=("most",)), "questions: no split 'most'"),
        (lambda: changed("demo-pope", "benchmark", splits=("popula",)), "questions: no split 'popula'"),
        (lambda: changed("demo-pope", "benchmark", questions_sha256="0" * 64), "questions: their hash is"),
        (
            lambda: changed("llava15-7b-pope", "benchmark", files={"head/coco_pope_random.json": "0" * 64}),
            "files: head/coco_pope_random.json: the published file has sha256 ac25",
        ),
        (
            lambda: changed("demo-pope", "prompt", suffix=" Yes or no?"),
            r"prompt: the processor makes 'USER: <image>\\n.* Yes or no\? ASSISTANT:'",
        ),
        (
            lambda: changed("llava15-7b-pope", "prompt", format="USER: <image> {question} ASSISTANT:"),
            "prompt: the format makes",
        ),
    ],
)
def test_a_mistake_is_wrong(make, message, tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    wrong = checked(make())["wrong"]
    assert any(re.match(message, each) for each in wrong), wrong


def test_a_figure_that_the_scorer_does_not_have():
    made = recipe.load("demo-pope")
    published = (made.published[0].model_copy(update={"figure": "brier"}),)
    assert "no figure 'brier'" in checked(changed("demo-pope", published=published))["wrong"][0]


def test_files_are_missing_published_or_others(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    name = "coco_pope_random.json"
    (tmp_path / "e3e3926").mkdir()
    (tmp_path / "e3e3926" / name).write_text("{}")
    found = checked(recipe.load("llava15-7b-pope"), data=tmp_path)
    assert any(name in each and "the recipe's is c16b65d2" in each for each in found["wrong"])
    missing = [each for each in found["missing"] if "coco_pope_popular.json" in each]
    assert missing
    assert "get it from `regaze benchmarks get pope`" in missing[0]
    if POPE.is_dir():
        content = gzip.decompress((POPE / "e3e3926" / f"{name}.gz").read_bytes())
        (tmp_path / "e3e3926" / name).write_bytes(content)
        found = checked(recipe.load("llava15-7b-pope"), data=tmp_path)
        assert f"files: e3e3926/{name} is the published one" in found["ok"]


@pytest.mark.skipif(not POPE.is_dir(), reason="needs POPE's files")
def test_published_files_have_the_hashes_of_the_recipes():
    hashed = {file for made in OF_POPE for file in made.benchmark.files.items() if file[1] is not None}
    assert len(hashed) == 6  # three splits of head and of e3e3926
    for path, digest in sorted(hashed):
        assert dry_run._file(POPE, path, digest, "").state == "ok", path


@pytest.mark.skipif(not POPE.is_dir(), reason="needs POPE's files")
def test_the_example_is_the_first_question_of_every_file():
    with gzip.open(POPE / "head/coco_pope_random.json.gz", "rt") as file:
        first = json.loads(file.readline())["text"]
    assert {made.prompt.example.question for made in OF_POPE} == {first}


def test_what_nobody_states_is_named():
    found = checked(recipe.load("llava15-7b-chair-gift"))["unknown"]
    assert "source: decoding.max_new_tokens is not stated, here: 512" in found
    assert any(each.startswith("model: llava-hf/llava-1.5-7b-hf: no revision") for each in found)
    differs = checked(recipe.load("llava15-7b-pope-opera"))["unknown"]
    assert any(each.startswith("source: the plain model answers greedily") for each in differs)


def test_a_method_without_what_it_needs_is_missing_something():
    made = changed("demo-pope-vcd", "method", name="vti", parameters={})
    assert any("vti" in each for each in checked(made)["missing"])


def test_versions_and_questions_of_a_recipe():
    made = recipe.load("llava15-7b-pope-vcd-greedy")
    assert questions.options(made, "head", 5) == {
        "suffix": " Answer the question using a single word or phrase.",
        "version": "head",
        "limit": 5,
        "splits": ["random", "popular", "adversarial"],
    }
    chair = questions.options(recipe.load("llava15-7b-chair-64"))
    assert chair == {"sample": 500, "prompt": "Please describe this image in detail.", "max_new_tokens": 64}
    with pytest.raises(UnknownParameterError, match="popev2 has no questions of data"):
        questions.option_types(changed("demo-pope", "benchmark", name="popev2"))
    assert ledger.deviations(made) == []


def test_the_folder_of_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    assert questions.folder(recipe.load("demo-pope"), None) is None
    made = recipe.load("llava15-7b-pope")
    assert questions.folder(made, None) == tmp_path / "benchmarks/pope"
    assert questions.folder(made, Path("mine")) == Path("mine")


def test_every_recipe_is_of_a_benchmark_whose_splits_are_declared():
    assert {
        made.benchmark.name for made in recipe.load_all() if not load_class(made.benchmark.name).splits
    } == set()


def test_a_benchmark_that_only_its_files_and_a_judge_can_describe():
    found = checked(changed("llava15-7b-mme", "benchmark", name="mmhal", options={}, splits=("some",)))
    assert "questions: splits not checked: the files of mmhal decide" in found["unknown"]
    assert "scorer: not checked: mmhal has none without its questions" in found["unknown"]
    assert "wrong" not in found
