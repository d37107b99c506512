"""Runs with controls: which are asked, what is compared, and that a rerun asks nothing."""

from __future__ import annotations

import shutil

import pytest
from standins import lines

import regaze
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.report.report import write_report
from regaze.eval.run.generate import AnswerGenerator
from regaze.interventions import HGAI, PAI, VCD, HeadKnockout
from regaze.interventions.controls import NearTie, RandomHeads, UniformColumns
from regaze.interventions.registry import method_from_dict

METHODS = {"pai": PAI(), "vcd": VCD(noise_step=900)}
UNIFORM, CUT, GENERAL = "uniform-columns of pai", "plausibility-cut beta=0.1", ["prefer-yes", "near-tie"]


@pytest.fixture(scope="module")
def gaze():
    return regaze.wrap(*regaze.load("demo"))


@pytest.fixture(scope="module")
def tasks():
    pope = Pope.of_demo(limit=6, splits=["adversarial"])
    return [EvalTask(pope, {"max_new_tokens": 3}), EvalTask(Chair.of_demo(2), {})]


def run(gaze, tasks, folder, **more):
    config = EvalConfig(batch_size=10, raise_method_errors=True)
    return evaluate(gaze, tasks, METHODS, folder, model_name="demo", config=config, **more)


@pytest.fixture(scope="module")
def finished(gaze, tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls")
    return run(gaze, tasks, folder, controls=True), folder


def answers_of(folder, benchmark, label):
    rows = [row for row in lines(folder / "answers.jsonl") if row["benchmark"] == benchmark]
    return [row["answer"] for row in rows if row["condition"] == label]


def test_each_benchmark_has_its_controls(finished):
    results, folder = finished
    pope, captions = results["benchmarks"]["pope"], results["benchmarks"]["captions"]
    assert list(pope["controls"]) == [UNIFORM, *GENERAL]
    assert pope["controls_of"] == {"pai": [UNIFORM, *GENERAL], "vcd": GENERAL}
    general, *lengths = captions["controls_of"]["vcd"]
    assert general == "drop-last-sentence"
    assert [label.split("=")[0] for label in lengths] == ["stop-after tokens"]  # VCD's captions are shorter
    assert set(pope["methods"]) == set(captions["methods"]) == set(METHODS)
    for name, benchmark in results["benchmarks"].items():
        for label in benchmark["controls"]:
            assert benchmark["controls"][label]["error"] is None
            assert len(answers_of(folder, name, label)) == benchmark["benchmark"]["questions"]
            assert method_from_dict(results["controls"][label]).name == label.split()[0]


def test_lengths_are_matched(finished, gaze):
    results, folder = finished
    captions = results["benchmarks"]["captions"]
    label = captions["controls_of"]["vcd"][-1]
    words = [
        entry["text"]["words"]
        for entry in (captions["plain"], captions["controls"][label], captions["methods"]["vcd"])
    ]
    assert words[0] > words[1]
    assert words[1] == pytest.approx(words[2], abs=1.0)
    for plain, short in zip(
        *(answers_of(folder, "captions", each) for each in ("plain", label)), strict=True
    ):
        assert plain.startswith(short)


@pytest.mark.parametrize("name", ["pope", "captions"])
def test_a_method_is_compared_with_the_best_of_its_controls(finished, tasks, name):
    results, folder = finished
    [benchmark] = [task.benchmark for task in tasks if task.benchmark.name == name]
    asked, lower = results["benchmarks"][name], name == "captions"
    split, scorer, figure = (
        ("captions", "chair", "chair_s") if lower else ("adversarial", "official", "accuracy")
    )

    def value(label):
        entry = {**asked["controls"], "plain": asked["plain"]}[label]["figures"][split][scorer]
        return entry.get("edited", entry["plain"])[figure]["value"]

    for label, entry in asked["methods"].items():
        verdict = entry["against_controls"][split][scorer]
        candidates = {each: value(each) for each in (*asked["controls_of"][label], "plain")}
        assert candidates[verdict["best"]] == (min if lower else max)(candidates.values())
        pair = {"plain": answers_of(folder, name, verdict["best"]), "edited": answers_of(folder, name, label)}
        difference = benchmark.score(pair, seed=0)[split][scorer]["difference"]
        assert verdict["figure"] == figure
        assert verdict["value"] == difference[figure]["value"]
        assert verdict["p"] == next(difference[p] for p in ("mcnemar_p", "permutation_p") if p in difference)
        assert verdict["holm_p"] >= verdict["p"]
        assert verdict["beats"] is (verdict["better"] and verdict["holm_p"] < 0.05)


def test_the_methods_figures_are_those_without_controls(finished, gaze, tasks, tmp_path):
    """Holm's correction counts methods; what is asked for them does not change: the journal has it all."""
    results, folder = finished
    shutil.copytree(folder, tmp_path / "alone")
    alone = run(gaze, tasks, tmp_path / "alone")
    for name, benchmark in alone["benchmarks"].items():
        assert benchmark["controls"] == benchmark["controls_of"] == {}
        for label, entry in benchmark["methods"].items():
            assert entry["against_controls"] is None
            assert entry["figures"] == results["benchmarks"][name]["methods"][label]["figures"]
    assert alone["controls"] == {}


def test_a_rerun_asks_nothing(finished, gaze, tasks, monkeypatch):
    results, folder = finished
    monkeypatch.setattr(AnswerGenerator, "warm_up", lambda *_: pytest.fail("something was asked"))
    again = run(gaze, tasks, folder, controls=True)
    assert {**again, "created": ""} == {**results, "created": ""}


def test_prefixes_are_shared_as_declared(gaze, tmp_path):
    """And change no answer."""
    task = EvalTask(Pope.of_demo(limit=8, splits=["adversarial"]), {"max_new_tokens": 2})
    controls = {
        "near-tie": NearTie(mass=0.0, gap=1.9),
        "uniform": UniformColumns(HGAI(alpha=2.0)),
        "heads": RandomHeads(HeadKnockout(heads=((0, 0), (0, 3)))),
    }
    answers = []
    for shared in (True, False):
        folder, config = tmp_path / str(shared), EvalConfig(share_prefix=shared)
        results = evaluate(gaze, [task], controls, folder, model_name="demo", config=config)
        for entry in results["benchmarks"]["pope"]["methods"].values():
            assert (entry["sharing"] is None) is shared
        answers.append(lines(folder / "answers.jsonl"))
    assert answers[0] == answers[1]


def test_the_report_says_who_beats_what(finished):
    results, folder = finished
    for page in write_report(results, folder):
        text = page.read_text(encoding="utf-8")
        for part in (
            "Methods against their controls",
            "beats its controls",
            f"control: {UNIFORM}",
            "best control",
        ):
            assert part in text


def test_sampled_answers_have_the_cut_as_a_control(gaze, tmp_path):
    task = EvalTask(Pope.of_demo(limit=1, splits=["adversarial"]), {"max_new_tokens": 2, "temperature": 1.0})
    results = evaluate(gaze, [task], {"vcd": VCD()}, tmp_path, model_name="demo", controls=True)
    assert results["benchmarks"]["pope"]["controls_of"] == {"vcd": [CUT, *GENERAL]}
