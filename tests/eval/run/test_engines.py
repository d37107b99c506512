"""A run takes any engine: it stores each part before the next is made, and goes on where it stopped."""

from __future__ import annotations

import json

import pytest

import regaze
from regaze.errors import InputError, UnsupportedModelError
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate, sweep
from regaze.eval.cost import Cost
from regaze.eval.run.engines import TransformersEngine
from regaze.eval.run.generate import BatchAnswers
from regaze.interventions import HeadKnockout

KNOCKOUT = HeadKnockout(heads=((0, 0), (0, 3)))


class Counting:
    """Answers yes, three at a time, and refuses methods."""

    reader = None
    obstacle = "nothing is shared"

    def __init__(self, fails_at: int | None = None):
        self.asked: list[str] = []
        self.fails_at = fails_at

    def describe(self, name):
        return {"name": name, "fingerprint": "counting"}

    def generator(self, condition, config):
        self.condition = condition
        return self

    def check(self, requests):
        if self.condition.method is not None:
            raise UnsupportedModelError("there is no attention here")

    def warm_up(self, requests):
        self.check(requests)

    def answer_all(self, requests):
        for start in range(0, len(requests), 3):
            if self.fails_at is not None and len(self.asked) >= self.fails_at:
                raise KeyboardInterrupt
            part = requests[start : start + 3]
            self.asked += [request.key for request in part]
            yield BatchAnswers({request.key: "yes" for request in part}, {}, Cost(len(part)))


@pytest.fixture(scope="module")
def task():
    return EvalTask(Pope.of_demo(limit=8, splits=["random"]))


def test_what_a_stopped_run_has_is_not_asked_again(task, tmp_path):
    stopped, engine = Counting(fails_at=6), Counting()
    with pytest.raises(KeyboardInterrupt):
        evaluate(None, [task], {}, tmp_path, model_name="m", engine=stopped, progress=False)
    results = evaluate(None, [task], {}, tmp_path, model_name="m", engine=engine, progress=False)
    assert len(stopped.asked) == 6
    assert len(engine.asked) == 2
    assert results["benchmarks"]["pope"]["plain"]["cost"]["answers"] == 8
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["yes"] * 8


def test_progress_counts_every_part(task, tmp_path):
    seen = []
    evaluate(
        *(None, [task], {}, tmp_path),
        model_name="m",
        engine=Counting(),
        progress=lambda label, done, total: seen.append((done, total)),
    )
    assert seen == [(0, 8), (3, 8), (6, 8), (8, 8)]


def test_a_refused_method_ends_the_run_before_anything_is_asked(task, tmp_path):
    engine, config = Counting(), EvalConfig(raise_method_errors=True)
    with pytest.raises(UnsupportedModelError, match="no attention here"):
        evaluate(
            *(None, [task], {"knockout": KNOCKOUT}, tmp_path),
            model_name="m",
            engine=engine,
            config=config,
            progress=False,
        )
    assert engine.asked == []


def test_among_several_methods_it_is_a_condition_that_did_not_run(task, tmp_path):
    engine, methods = Counting(), {"knockout": KNOCKOUT}
    results = evaluate(None, [task], methods, tmp_path, model_name="m", engine=engine, progress=False)
    assert results["benchmarks"]["pope"]["methods"]["knockout"]["error"] == "there is no attention here"
    assert len(engine.asked) == 8


def test_either_a_model_or_an_engine_answers(task, tmp_path):
    gaze = regaze.wrap(*regaze.load("demo"))
    for given in ({"gaze": gaze, "engine": Counting()}, {"gaze": None, "engine": None}):
        chosen = {**given, "model_name": "m", "output": tmp_path, "tasks": [task]}
        with pytest.raises(InputError, match="give one of the two"):
            evaluate(methods={}, **chosen)
        with pytest.raises(InputError, match="give one of the two"):
            sweep(method=KNOCKOUT, grid={"heads": [[[0, 0]]]}, **chosen)


def test_a_model_and_its_engine_are_one_configuration(task, tmp_path):
    gaze = regaze.wrap(*regaze.load("demo"))
    evaluate(gaze, [task], {}, tmp_path, model_name="m", progress=False)
    lines = (tmp_path / "journal.0.jsonl").read_text()
    evaluate(None, [task], {}, tmp_path, model_name="m", engine=TransformersEngine(gaze), progress=False)
    assert (tmp_path / "journal.0.jsonl").read_text() == lines
