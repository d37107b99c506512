"""Inspect's tasks and model provider, run by Inspect itself on the demo."""

from __future__ import annotations

import base64

import pytest

pytest.importorskip("inspect_ai", reason="Inspect is not installed: pip install 'regaze[inspect]'")

from inspect_ai import eval as run
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig

import regaze
from regaze.demo import IMAGE_DIR
from regaze.errors import BadParameterError, InputError
from regaze.eval.benchmarks.dash_b import DashB
from regaze.eval.benchmarks.pope.repope import RePope
from regaze.eval.harness import inspect_task
from regaze.eval.harness.inspect_model import RegazeModel

ITEMS = 10
HEADS = [[layer, head] for layer in range(4) for head in range(3)]


def expected(bench, items, rule, *methods):
    """The demo model's answers to the questions, and their figures by a scorer of the benchmark."""
    gaze = regaze.wrap(*regaze.load("demo"))
    with gaze.using(*methods):
        answers = gaze.ask([i.image for i in items], [bench.prompt(i) for i in items], max_new_tokens=16)
    scorer = next(each for each in bench.scorers() if each.name == rule)
    return answers, scorer.score([item.reference for item in items], answers)


def answers_in(log, items):
    """The answers of a log, which has them in the order in which they came."""
    by_id = {sample.id: sample.output.completion for sample in log.samples}
    return [by_id[item.key] for item in items]


@pytest.mark.parametrize("rule", ["regaze", "repope"])
def test_repope_gives_the_figures_of_both_label_sets(tmp_path, rule):
    log = run(
        inspect_task.repope(rule=rule),
        model="regaze/demo",
        limit=ITEMS,
        display="none",
        log_dir=str(tmp_path),
    )[0]
    assert log.status == "success", log.error
    bench = RePope.of_demo()
    answers, figures = expected(bench, bench.items[:ITEMS], rule)
    assert answers_in(log, bench.items[:ITEMS]) == answers
    found = {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
    assert found == pytest.approx(figures, nan_ok=True)
    right = {
        item.key: answer.lower() == item.reference.repope
        for item, answer in zip(bench.items[:ITEMS], answers, strict=True)
    }
    assert {sample.id: sample.scores["yes_no"].value == "C" for sample in log.samples} == right


def test_a_method_changes_the_answers_to_dash_b(tmp_path):
    log = run(
        inspect_task.dash_b(),
        model="regaze/demo",
        model_args={"method": "knockout", "heads": HEADS},
        limit=ITEMS,
        display="none",
        log_dir=str(tmp_path),
    )[0]
    assert log.status == "success", log.error
    bench = DashB.of_demo()
    answers, _ = expected(bench, bench.items[:ITEMS], "regaze", regaze.HeadKnockout(heads=HEADS))
    assert answers_in(log, bench.items[:ITEMS]) == answers
    assert answers != expected(bench, bench.items[:ITEMS], "regaze")[0]


def test_what_cannot_be_run_is_refused():
    with pytest.raises(InputError, match="pope has no scorer 'mine'; there are official"):
        inspect_task.pope(rule="mine")
    with pytest.raises(BadParameterError, match="unknown bta"):
        RegazeModel("no-such-model", method="pai", bta=0.1)


@pytest.fixture(scope="module")
def model():
    return RegazeModel("demo")


def ask(model, *messages, tools=()):
    import asyncio

    return asyncio.run(model.generate(list(messages), tools, None, GenerateConfig(max_tokens=4)))


def test_images_come_as_files_and_as_data(model):
    path = next(IMAGE_DIR.glob("*.webp"))
    data = "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode()
    said = [
        ask(model, ChatMessageUser(content=[ContentImage(image=image), ContentText(text="What is there?")]))
        for image in (str(path), data)
    ]
    assert said[0].completion == said[1].completion != ""


def test_several_messages_and_addresses_are_refused(model):
    message = ChatMessageUser(content="Hello?")
    with pytest.raises(InputError, match="single questions"):
        ask(model, message, message)
    with pytest.raises(InputError, match="single questions"):
        ask(model, message, tools=["calculator"])
    with pytest.raises(InputError, match="download the image"):
        ask(model, ChatMessageUser(content=[ContentImage(image="https://example.org/a.png")]))
