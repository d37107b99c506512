"""Published figures beside measured ones, and the entries of the ledger."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from regaze.errors import InputError
from regaze.eval.reproduction import ledger, recipe
from regaze.eval.reproduction.recipe import Published, Recipe, Spread


def estimate(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def benchmark(**figures: Any) -> dict[str, Any]:
    """A benchmark of results.json: `figures` by split, each (plain, edited, difference) of the accuracy."""

    def block(split: str, *keys: str) -> dict[str, Any]:
        estimates = dict(zip(("plain", "edited", "difference"), figures[split], strict=True))
        scores = {key: {"accuracy": estimates[key], "words": estimates[key]} for key in keys}
        return {"questions": 40, "images": 20, "official": scores}

    condition = {"error": None, "left_out": 0, "cost": {"seconds": 1.25}}
    return {
        "benchmark": {"name": "pope", "questions": 80, "questions_sha256": "5" * 64, "images": ["a", "b"]},
        "generation": {"max_new_tokens": 16},
        "numbers": {"official": ["words"]},
        "plain": {**condition, "figures": {split: block(split, "plain") for split in figures}},
        "methods": {
            "vcd": {
                **condition,
                "figures": {split: block(split, "plain", "edited", "difference") for split in figures},
            }
        },
    }


RANDOM = (estimate(0.80, 0.78, 0.82), estimate(0.85, 0.83, 0.87), estimate(0.05, 0.03, 0.07))
POPULAR = (estimate(0.70, 0.66, 0.74), estimate(0.71, 0.67, 0.75), estimate(0.01, -0.01, 0.03))


def made(*published: Published, questions: str = "same", images: int | None = None) -> Recipe:
    base = recipe.load("llava15-7b-pope-vcd-greedy")
    of = base.benchmark.model_copy(update={"splits": ("random", "popular"), "images": images, "files": {}})
    interval = base.interval.model_copy(update={"questions": questions})
    update = {"scorer": "official", "published": published, "interval": interval, "benchmark": of}
    return base.model_copy(update=update)


def rows(recipe_: Recipe, results: dict[str, Any]) -> dict[str, ledger.Figure]:
    return {each.condition: each for each in ledger.compare(recipe_, results)}


def test_shares_are_compared_in_percent_and_numbers_as_they_are():
    results = benchmark(random=RANDOM)
    share = rows(made(Published(split="random", figure="accuracy", plain=80.1, method=84.0)), results)
    assert (share["plain"].value, share["plain"].interval) == (80.0, (78.0, 82.0))
    assert (share["plain"].low, share["plain"].high) == (80.05, 80.15)
    assert (share["gain"].published, share["gain"].value) == (3.9, 5.0)
    assert (share["gain"].low, share["gain"].high) == (3.8, 4.0)
    assert {each.verdict for each in share.values()} == {"inside"}
    number = rows(made(Published(split="random", figure="words", plain=0.8)), results)
    assert (number["plain"].value, number["plain"].interval) == (0.8, (0.78, 0.82))


def test_a_method_alone_has_no_difference():
    results = benchmark(random=RANDOM)
    assert rows(made(Published(split="random", figure="accuracy", method=90.0)), results).keys() == {"method"}
    assert rows(made(Published(split="random", figure="accuracy", plain=90.0)), results).keys() == {"plain"}


def test_other_sources_widen_the_range():
    results = benchmark(random=RANDOM)
    alone = Published(split="random", figure="accuracy", plain=90.0, method=95.0)
    others = Spread(plain=(81.0,), gain=(-3.0,), where="elsewhere")
    found = rows(made(alone), results)
    assert [found[each].verdict for each in ("plain", "method", "gain")] == ["outside", "outside", "inside"]
    found = rows(made(alone.model_copy(update={"elsewhere": others})), results)
    assert (found["plain"].low, found["plain"].high) == (80.95, 90.05)
    assert (found["gain"].low, found["gain"].high) == (-3.0, 5.1)
    assert [found[each].verdict for each in ("plain", "method", "gain")] == ["inside", "outside", "inside"]


def test_a_gain_that_may_be_none_says_nothing():
    results = benchmark(popular=POPULAR)
    found = rows(made(Published(split="popular", figure="accuracy", plain=70.0, method=71.5)), results)
    assert found["gain"].verdict == "cannot say"
    assert "may be none" in found["gain"].reason


def test_the_mean_over_splits():
    results = benchmark(random=RANDOM, popular=POPULAR)
    found = rows(made(Published(split="mean", figure="accuracy", plain=75.0)), results)["plain"]
    assert (found.value, found.interval) == (75.0, (72.0, 78.0))


def test_other_images_widen_the_interval():
    published = Published(split="random", figure="accuracy", plain=83.0)
    results = benchmark(random=RANDOM)
    assert rows(made(published), results)["plain"].verdict == "outside"
    found = rows(made(published, questions="new", images=20), results)["plain"]
    assert found.interval == pytest.approx((77.1716, 82.8284))  # 80 -+ 2 sqrt 2
    assert found.verdict == "outside"
    found = rows(made(published, questions="new", images=5), results)["plain"]
    assert found.interval == pytest.approx((75.5279, 84.4721))  # 80 -+ 2 sqrt 5
    assert found.verdict == "inside"


def test_results_without_a_figure_are_named():
    published = Published(split="popular", figure="accuracy", plain=70.0)
    with pytest.raises(InputError, match="no accuracy of popular by official: 'popular' is missing"):
        ledger.compare(made(published), benchmark(random=RANDOM))
    results = benchmark(random=RANDOM)
    results["methods"]["vcd"] = {"error": "no image", "left_out": 0}
    with pytest.raises(InputError, match="the method could not run: no image"):
        ledger.compare(made(Published(split="random", figure="accuracy", method=90.0)), results)


@pytest.fixture
def run(tmp_path):
    """(results.json, folder) of a complete run."""
    (tmp_path / "answers.jsonl").write_text("{}\n")
    results = {
        "created": "2026-11-29T20:00:00+00:00",
        "model": {"name": "demo", "fingerprint": "f" * 32},
        "seed": 0,
        "versions": {"torch": "2"},
        "machine": {"cpus": 2},
        "methods": {"vcd": {"method": "vcd", "alpha": 1.0}},
        "benchmarks": {"pope": benchmark(random=RANDOM)},
    }
    return results, tmp_path


SURE = Published(split="random", figure="accuracy", plain=80.0, method=85.0)
OFF = Published(split="random", figure="accuracy", plain=60.0, method=65.0)


def test_an_entry_can_be_written_and_read(run, tmp_path):
    entry = ledger.entry(made(SURE), "a" * 64, {"head": run})
    assert (entry.verdict, entry.reason) == ("inside", "")
    assert entry.runs[0].seconds == {"plain": 1.2, "method": 1.2}
    assert "images" not in entry.runs[0].benchmark
    assert entry.method == {"method": "vcd", "alpha": 1.0}
    path = ledger.write(entry, tmp_path / "ledger", ledger.file_name(entry))
    assert path.name.startswith("llava15-7b-pope-vcd-greedy-2026-11-29-")
    assert ledger.read(path) == entry
    later = entry.model_copy(update={"created": "2026-11-30T20:00:00+00:00"})
    ledger.write(later, tmp_path / "ledger", ledger.file_name(later))
    assert ledger.read_all(tmp_path / "ledger") == [entry, later]
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(InputError, match="is no ledger entry of format 1: format"):
        ledger.read(path)


def test_what_keeps_a_run_from_being_judged(run):
    def verdict_of(recipe_: Recipe, given: Any = run, **options: Any) -> tuple[str, str]:
        entry = ledger.entry(recipe_, "a" * 64, {"head": given}, **options)
        return entry.verdict, entry.reason

    assert verdict_of(made(OFF))[0] == "outside"
    unknown = made(OFF).model_copy(update={"unknown": {"prompt.suffix": "none"}})
    assert verdict_of(unknown) == (
        "cannot say",
        "outside, which may be due to: prompt.suffix is not stated, here: none",
    )
    found = verdict_of(made(OFF), deviating=["dtype: float32 in place of float16"])
    assert found[0] == "cannot say"
    assert "dtype: float32" in found[1]
    assert verdict_of(made(SURE), limits=["the first 3 questions"]) == ("cannot say", "the first 3 questions")
    failed = copy.deepcopy(run[0])
    failed["benchmarks"]["pope"]["plain"]["left_out"] = 2
    assert verdict_of(made(SURE), (failed, run[1])) == ("cannot say", "2 questions failed")


def test_other_questions_than_the_recipes(run):
    results, folder = copy.deepcopy(run[0]), run[1]
    described = results["benchmarks"]["pope"]["benchmark"]
    described["files"] = {"random": {"file": "coco_pope_random.json", "sha256": "1" * 64}}

    def verdict_of(**changes: Any) -> str:
        base = made(SURE)
        of = base.benchmark.model_copy(update=changes)
        return ledger.entry(
            base.model_copy(update={"benchmark": of}), "a" * 64, {None: (results, folder)}
        ).reason

    assert verdict_of(questions_sha256="5" * 64) == ""
    assert verdict_of(questions_sha256="6" * 64) == "the questions are not those of the recipe"
    assert verdict_of(files={"head/coco_pope_random.json": "1" * 64}) == ""
    assert verdict_of(files={"head/coco_pope_random.json": None}) == ""
    one = {"head/coco_pope_random.json": "2" * 64}
    assert verdict_of(files=one) == "coco_pope_random.json is not the published file"
    assert verdict_of(files={**one, "e3e3926/coco_pope_random.json": "1" * 64}) == ""


def test_versions_of_the_questions_have_a_verdict_together(run):
    results, folder = copy.deepcopy(run[0]), run[1]
    results["benchmarks"]["pope"] = benchmark(
        random=(estimate(0.6, 0.58, 0.62), estimate(0.65, 0.63, 0.67), estimate(0.05, 0.03, 0.07))
    )
    both = ledger.entry(made(SURE), "a" * 64, {"head": run, "9b54106": (results, folder)})
    assert [each.verdict for each in both.runs] == ["inside", "outside"]
    assert both.verdict == "cannot say"
    assert "depends on the version" in both.reason
