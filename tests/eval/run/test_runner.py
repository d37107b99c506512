"""The runner: its requests, its output files, failures and resumed runs, and the errors it raises."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from standins import Blind, StandIn, lines, write_pope

from regaze.errors import BadParameterError, InputError
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.run import results as results_file
from regaze.eval.run.runner import evaluate_benchmark


@pytest.fixture
def pope(tmp_path: Path) -> Pope:
    """Five questions on three images."""
    return write_pope(tmp_path)


def test_plain_and_edited_answer_the_same_questions_and_are_scored(pope, tmp_path):
    gaze, seen = StandIn(), []
    results = evaluate_benchmark(
        gaze,
        pope,
        Blind(),
        tmp_path / "out",
        model_name="stand-in",
        batch_size=2,
        seed=7,
        progress=lambda *state: seen.append(state),
        max_new_tokens=3,
    )
    # Each condition begins with one question that is asked to see whether it works.
    everything = ["a0? !", "a1? !", "b2? !", "b3? !", "c4? !"]
    assert sorted(gaze.prompts) == sorted([*everything, everything[0]] * 2)
    assert {len(batch) for batch in gaze.batches} == {1, 2}
    assert all(options["max_new_tokens"] == 3 for options in gaze.options)
    assert seen[0] == ("plain", 0, 5)
    assert seen[-1] == ("blind", 5, 5)

    asked = results["benchmarks"]["pope"]
    edited = asked["methods"]["blind"]
    figures = edited["figures"]["random"]["official"]
    assert figures["plain"]["accuracy"]["value"] == pytest.approx(3 / 5)
    assert figures["edited"]["accuracy"]["value"] == pytest.approx(2 / 5)
    assert figures["difference"]["only_plain_correct"] == 3
    assert figures["difference"]["holm_p"] == figures["difference"]["permutation_p"]
    assert edited["answers_changed"] == 5
    assert edited["text"]["yes_ratio"] == 0.0
    assert edited["flags"] == ["yes-ratio -100.0 points"]
    assert asked["plain"]["asked"] == 5
    assert asked["plain"]["cost"]["answers"] == 5
    assert asked["plain"]["cost"]["seconds"] > 0

    written = results_file.read(tmp_path / "out")
    assert written["complete"] is True
    assert written["methods"] == {"blind": {"method": "blind", "strength": 1.0}}
    assert written["model"]["name"] == "stand-in"
    assert (written["seed"], written["batch_size"]) == (7, 2)
    assert written["versions"]["torch"] == torch.__version__
    # The edited answers hold no "yes", so the official precision is undefined: null, never NaN.
    official = written["benchmarks"]["pope"]["methods"]["blind"]["figures"]["random"]["official"]
    assert official["edited"]["precision"]["value"] is None
    assert "NaN" not in (tmp_path / "out/results.json").read_text()

    answers = lines(tmp_path / "out/answers.jsonl")
    assert answers[0] == {
        "benchmark": "pope",
        "condition": "plain",
        "key": "random/1",
        "split": "random",
        "image": "a.png",
        "prompt": "a0? !",
        "label": "yes",
        "answer": "Yes",
    }
    assert [row["key"] for row in answers] == [f"random/{n}" for n in range(1, 6)] * 2
    assert [row["condition"] for row in answers] == ["plain"] * 5 + ["blind"] * 5


def test_a_question_that_two_splits_share_is_answered_once(pope, tmp_path):
    twice = Pope.from_files(
        {"random": pope.files["random"], "popular": pope.files["random"]}, pope.images, suffix=" !"
    )
    gaze = StandIn()
    results = evaluate_benchmark(gaze, twice, None, tmp_path / "out", model_name="m")
    assert len(gaze.prompts) == 5 + 1
    assert results["benchmarks"]["pope"]["plain"]["asked"] == 5
    assert len(lines(tmp_path / "out/answers.jsonl")) == 10


def test_a_run_goes_on_where_it_was_stopped_and_asks_nothing_twice(pope, tmp_path):
    whole = evaluate_benchmark(StandIn(), pope, Blind(), tmp_path / "whole", model_name="m", batch_size=2)
    first = StandIn(stops_after=4)  # one to begin with, then a batch of two; the next is one too many
    with pytest.raises(KeyboardInterrupt):
        evaluate_benchmark(first, pope, Blind(), tmp_path / "out", model_name="m", batch_size=2)
    assert results_file.read(tmp_path / "out")["complete"] is False
    assert not (tmp_path / "out/answers.jsonl").exists()
    second = StandIn()
    resumed = evaluate_benchmark(second, pope, Blind(), tmp_path / "out", model_name="m", batch_size=2)
    assert len(second.prompts) == (1 + 3) + (1 + 5)
    assert not set(first.batches[1]) & {prompt for batch in second.batches[1:3] for prompt in batch}
    for file in ("answers.jsonl",):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert figures(resumed) == figures(whole)
    third = StandIn()
    assert figures(
        evaluate_benchmark(third, pope, Blind(), tmp_path / "out", model_name="m", batch_size=7)
    ) == figures(whole)
    assert third.prompts == []


def test_the_folder_may_be_a_text_and_temperatures_whole_numbers(pope, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gaze = StandIn()
    evaluate(gaze, [EvalTask(pope, {"temperature": 1})], {}, "out/python", model_name="m")
    assert results_file.read(tmp_path / "out/python")["complete"] is True
    assert gaze.options[0]["logits_processor"]


def figures(results: dict) -> dict:
    asked = results_file.finite(results)["benchmarks"]["pope"]
    return {"plain": asked["plain"]["figures"], **{k: v["figures"] for k, v in asked["methods"].items()}}


@pytest.mark.parametrize(
    "change",
    [
        {"method": Blind(0.5)},
        {"model_name": "another"},
        {"max_new_tokens": 9},
        {"suffix": " ?"},
        {"pixels": True},
        {"seed": 1, "do_sample": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_answers_of_another_configuration_are_never_read(pope, tmp_path, change):
    given = {"method": Blind(), "model_name": "m", "max_new_tokens": 3, "seed": 0, "do_sample": False}
    if "do_sample" in change:
        given["do_sample"] = True
    method = given.pop("method")
    evaluate_benchmark(StandIn(), pope, method, tmp_path / "out", **given)
    before = (tmp_path / "out/results.json").read_text()
    method = change.pop("method", method)
    if change.pop("pixels", False):
        for name in "abc":
            Image.new("RGB", (8, 8), "green").save(pope.images / f"{name}.png")
    if "suffix" in change:
        pope = dataclasses.replace(pope, suffix=change.pop("suffix"))
    gaze = StandIn()
    evaluate_benchmark(gaze, pope, method, tmp_path / "out", **{**given, **change})
    # A method of other parameters leaves the plain answers what they are.
    assert len(set(gaze.prompts)) == 5
    assert len(gaze.prompts) == (6 if method.strength == 0.5 else 12)
    if (
        "pixels" not in change
        and json.loads(before)["configuration"] != results_file.read(tmp_path / "out")["configuration"]
    ):
        assert (tmp_path / "out/results.1.json").read_text() == before
        assert (tmp_path / "out/answers.1.jsonl").exists()


def test_greedy_answers_do_not_depend_on_the_seed(pope, tmp_path):
    evaluate_benchmark(StandIn(), pope, None, tmp_path / "out", model_name="m", seed=0)
    gaze = StandIn()
    evaluate_benchmark(gaze, pope, None, tmp_path / "out", model_name="m", seed=1)
    assert gaze.prompts == []


def test_memory_that_runs_out_halves_the_batch_for_good(pope, tmp_path):
    gaze = StandIn(max_batch=2)
    results = evaluate_benchmark(gaze, pope, None, tmp_path / "out", model_name="m", batch_size=5)
    assert [len(batch) for batch in gaze.batches] == [1, 2, 1, 2]
    assert results["benchmarks"]["pope"]["plain"]["failed"] == 0
    wide = write_pope(tmp_path, [("a", "yes")] * 12)
    gaze = StandIn(max_batch=3)
    evaluate_benchmark(gaze, wide, None, tmp_path / "wide", model_name="m", batch_size=6)
    assert [len(batch) for batch in gaze.batches[1:]] == [3, 3, 3, 3]


def test_a_failing_question_is_found_and_costs_its_cluster(pope, tmp_path):
    results = evaluate_benchmark(
        StandIn(fails_at="b2"), pope, Blind(), tmp_path / "out", model_name="m", batch_size=5
    )
    for entry in (results["benchmarks"]["pope"]["plain"], results["benchmarks"]["pope"]["methods"]["blind"]):
        assert (entry["failed"], entry["left_out"]) == (1, 2)
        assert entry["figures"]["random"]["questions"] == 3
    rows = lines(tmp_path / "out/answers.jsonl")
    assert rows[2] == {**rows[2], "key": "random/3", "error": "RuntimeError: a bad day"}
    assert "answer" not in rows[2]
    # Once it works, nothing but that question is asked again.
    gaze = StandIn()
    results = evaluate_benchmark(gaze, pope, Blind(), tmp_path / "out", model_name="m")
    assert set(gaze.prompts) == {"b2? !"}
    assert results["benchmarks"]["pope"]["plain"]["failed"] == 0


def test_a_question_that_fails_under_the_method_is_left_out_of_both(pope, tmp_path):
    class FailsEdited(StandIn):
        def ask(self, images, questions, **kwargs):
            if self.active and any("c4" in question for question in questions):
                raise ValueError("no")
            return super().ask(images, questions, **kwargs)

    results = evaluate_benchmark(FailsEdited(), pope, Blind(), tmp_path / "out", model_name="m")
    asked = results["benchmarks"]["pope"]
    assert asked["plain"]["figures"]["random"]["questions"] == 5
    compared = asked["methods"]["blind"]["figures"]["random"]
    assert compared["questions"] == 4
    assert compared["official"]["plain"]["accuracy"]["value"] == 0.5


@pytest.mark.parametrize("damage", ["missing", "folder"])
def test_an_image_that_cannot_be_read_is_an_error_row(pope, tmp_path, damage):
    path = tmp_path / "images" / "c.png"
    path.unlink()
    if damage == "folder":
        path.mkdir()
    gaze = StandIn()
    results = evaluate_benchmark(gaze, pope, None, tmp_path / "out", model_name="m")
    assert results["benchmarks"]["pope"]["plain"]["failed"] == 1
    assert "c4? !" not in gaze.prompts
    row = lines(tmp_path / "out/answers.jsonl")[4]
    assert row["error"].startswith(f"image {path} cannot be read: ")
    assert row["error"].endswith("q.jsonl:5)")


def test_too_many_errors_stop_the_run_and_say_why(pope, tmp_path):
    gaze = StandIn(fails_at="?")
    with pytest.raises(RuntimeError, match="a bad day"):  # the first question shows that nothing works
        evaluate_benchmark(gaze, pope, None, tmp_path / "out", model_name="m")
    gaze = StandIn(fails_at="b")
    with pytest.raises(
        InputError, match=r"2 questions failed, more than --max-errors 1 allows; one of them: Runt"
    ):
        evaluate_benchmark(gaze, pope, None, tmp_path / "out", model_name="m", max_errors=1)
    (tmp_path / "images" / "a.png").unlink()
    gaze = StandIn()
    with pytest.raises(InputError, match=r"2 questions failed.*a\.png cannot be read"):
        evaluate_benchmark(gaze, pope, None, tmp_path / "out2", model_name="m", max_errors=1)
    assert gaze.prompts == []


def test_nothing_left_to_score_is_an_error(tmp_path):
    pope = write_pope(tmp_path, [("a", "yes"), ("a", "no")])
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(InputError, match="pope: no question is left to score"):
        evaluate_benchmark(StandIn(), pope, None, tmp_path / "out", model_name="m")


class Broken(Blind):
    def to_dict(self):
        return {"method": "broken"}


class RefusesBroken(StandIn):
    def using(self, *interventions):
        if any(isinstance(one, Broken) for one in interventions):
            raise BadParameterError("head (99, 0) does not exist")
        return super().using(*interventions)


def test_a_method_that_cannot_work_is_a_line_of_a_comparison(pope, tmp_path):
    methods = {"strong": Blind(1.0), "weak": Blind(0.5), "broken": Broken()}
    results = evaluate(
        RefusesBroken(),
        [EvalTask(pope, {})],
        methods,
        tmp_path / "out",
        model_name="m",
        config=EvalConfig(batch_size=3),
    )
    entries = results["benchmarks"]["pope"]["methods"]
    assert entries["broken"]["error"] == "head (99, 0) does not exist"
    assert entries["broken"]["figures"] is None
    for label in ("strong", "weak"):
        difference = entries[label]["figures"]["random"]["official"]["difference"]
        assert difference["holm_p"] == min(1.0, 2 * difference["permutation_p"])
    with pytest.raises(BadParameterError, match=r"head \(99, 0\)"):
        evaluate_benchmark(RefusesBroken(), pope, Broken(), tmp_path / "single", model_name="m")


def test_several_benchmarks_in_one_run(pope, tmp_path):
    other = dataclasses.replace(pope, suffix=" ?", name="second")
    tasks = [EvalTask(pope, {"max_new_tokens": 2}), EvalTask(other, {"max_new_tokens": 5})]
    results = evaluate(StandIn(), tasks, {}, tmp_path / "out", model_name="m")
    assert list(results["benchmarks"]) == ["pope", "second"]
    assert results["benchmarks"]["second"]["generation"] == {"max_new_tokens": 5}
    assert [row["benchmark"] for row in lines(tmp_path / "out/answers.jsonl")] == ["pope"] * 5 + [
        "second"
    ] * 5


def test_items_may_limit_their_answers(pope, tmp_path):
    from dataclasses import replace

    items = (replace(pope.items[0], max_new_tokens=99), *pope.items[1:])
    object.__setattr__(pope, "items", items)
    gaze = StandIn()
    evaluate_benchmark(gaze, pope, None, tmp_path / "out", model_name="m", max_new_tokens=3)
    asked = {
        prompt: o["max_new_tokens"] for b, o in zip(gaze.batches, gaze.options, strict=True) for prompt in b
    }
    assert asked == {"a0? !": 99, "a1? !": 3, "b2? !": 3, "b3? !": 3, "c4? !": 3}


def test_wrong_configurations_are_refused(pope, tmp_path):
    with pytest.raises(InputError, match="batch size 0"):
        evaluate_benchmark(StandIn(), pope, None, tmp_path / "out", model_name="m", batch_size=0)
    with pytest.raises(InputError, match="max errors -1"):
        evaluate_benchmark(StandIn(), pope, None, tmp_path / "out", model_name="m", max_errors=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"output folder .* cannot be used"):
        evaluate_benchmark(StandIn(), pope, None, tmp_path / "file", model_name="m")
    with pytest.raises(InputError, match="no benchmark was given"):
        evaluate(StandIn(), [], {}, tmp_path / "out", model_name="m")
    with pytest.raises(InputError, match="each benchmark once, got pope, pope"):
        evaluate(StandIn(), [EvalTask(pope), EvalTask(pope)], {}, tmp_path / "out", model_name="m")
    with pytest.raises(InputError, match="'plain' is the model without a method"):
        evaluate(StandIn(), [EvalTask(pope)], {"plain": Blind()}, tmp_path / "out", model_name="m")
    with pytest.raises(BadParameterError, match="options of generate must be JSON values"):
        evaluate_benchmark(
            StandIn(), pope, None, tmp_path / "out", model_name="m", stopping_criteria=object()
        )
