"""Runs of models that think: the budget of tokens, and answers that were cut."""

from __future__ import annotations

import copy
import json

import pytest
from standins import StandIn, write_pope

import regaze
from regaze.cli import tables as terminal
from regaze.cli.questions import QuestionSource
from regaze.cli.scoring import score_answers
from regaze.errors import BadParameterError, InputError
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.report import tables
from regaze.eval.run.answers import read_answers
from regaze.toolkit.prompts.thinking import Continued


class Thinker(StandIn):
    """Thinks for seven tokens, and answers yes."""

    def ask(self, images, questions, **options):
        answers = super().ask(images, questions, **options)
        limit = options.get("max_new_tokens", 99)
        return [
            " ".join(["<think>", "a", "b", "c", "no", "</think>"][:limit]) + answer * (limit > 6)
            for answer in answers
        ]


def run(folder, gaze, benchmark, *, thinking=0, **kwargs):
    config = EvalConfig(batch_size=4, thinking_tokens=thinking)
    task = EvalTask(benchmark, kwargs)
    return evaluate(gaze, [task], {}, folder, model_name="m", config=config)["benchmarks"]["pope"]


def test_the_budget_is_added_to_the_limit_and_cut_answers_are_counted(tmp_path):
    pope = write_pope(tmp_path)
    gaze = Thinker()
    cut = run(tmp_path / "cut", gaze, pope, max_new_tokens=4)
    whole = run(tmp_path / "whole", gaze, pope, thinking=6, max_new_tokens=4)
    assert {each["max_new_tokens"] for each in gaze.options} == {4, 10}
    assert cut["plain"]["cut_in_thinking"] == len(pope.items)
    assert cut["plain"]["text"]["cut_in_thinking"] == cut["plain"]["text"]["unreadable"] == 1.0
    assert whole["plain"]["cut_in_thinking"] == 0
    assert whole["plain"]["text"]["yes_ratio"] == 1.0
    assert whole["generation"] == {"max_new_tokens": 4, "thinking_tokens": 6}
    assert "plain: 5 answers cut in their thinking" in tables.question_note(cut)
    assert "cut in thinking" in tables.confounds_table(cut)[0]
    assert "cut in thinking" not in tables.confounds_table(whole)[0]


def test_the_budget_is_part_of_what_decides_an_answer(tmp_path):
    pope, gaze = write_pope(tmp_path), Thinker()
    run(tmp_path / "out", gaze, pope, max_new_tokens=4)
    asked = len(gaze.prompts)
    run(tmp_path / "out", gaze, pope, max_new_tokens=4)
    assert len(gaze.prompts) == asked
    run(tmp_path / "out", gaze, pope, thinking=6, max_new_tokens=4)
    assert len(gaze.prompts) > asked


def test_a_budget_needs_a_limit_to_be_added_to(tmp_path):
    with pytest.raises(BadParameterError, match="thinking_tokens=6 adds to max_new_tokens: give that"):
        run(tmp_path / "out", Thinker(), write_pope(tmp_path), thinking=6)
    with pytest.raises(InputError, match="thinking tokens -1: expected 0 or more"):
        EvalConfig(thinking_tokens=-1)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run in which the chat template opens the thinking, which the demo then never closes."""
    model, processor = regaze.load("demo")
    processor = copy.deepcopy(processor)
    processor.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    folder = tmp_path_factory.mktemp("opened") / "out"
    gaze = regaze.wrap(model, processor)
    assert gaze.reader.thinking_opening == "<think>"
    return run(folder, gaze, Pope.of_demo(limit=2), max_new_tokens=2), folder


def test_a_template_that_opens_the_thinking(opened):
    results, folder = opened
    n = results["benchmark"]["questions"]
    assert results["plain"]["cut_in_thinking"] == n
    figures = results["plain"]["figures"]["all"]
    assert figures["regaze"]["plain"]["unreadable"]["value"] == 1.0
    assert "unreadable" not in figures["official"]["plain"]  # it reads what the model wrote
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert {row["prompt_opened"] for row in rows} == {"<think>"}
    assert not any("<think>" in row["answer"] for row in rows)  # raw
    (first, *_) = read_answers(folder)["pope"].values()
    assert isinstance(first["plain"], Continued)


def test_scoring_stored_answers_finds_the_same(opened):
    results, folder = opened
    source = QuestionSource(data="demo", limit=2)
    scored = score_answers("pope", folder / "answers.jsonl", None, None, source, None, 0)
    assert scored["plain"]["cut_in_thinking"] == results["plain"]["cut_in_thinking"]
    assert scored["plain"]["figures"]["all"]["regaze"] == results["plain"]["figures"]["all"]["regaze"]


def test_the_terminal_says_how_many_were_cut(opened):
    results, _ = opened
    assert any(
        "were cut in their thinking; --thinking-tokens" in line for line in terminal._caveats(results, None)
    )
