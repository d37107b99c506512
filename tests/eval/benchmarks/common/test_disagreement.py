"""How far scorers disagree, on answers whose truth is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.pope.benchmark import Pope
from regaze.eval.benchmarks.videohallucer.scorers import ReadingScorer, ReleasedScorer, VideoReference
from regaze.eval.comparison.conditions import AnswerSet, compare_conditions
from regaze.eval.report import tables
from regaze.eval.run.results import BenchmarkResults, finite

LABELS = ["yes", "yes", "yes", "no", "no", "no"]


def pope() -> Pope:
    items = [
        Item(str(n), "s", Path(f"{n}.png"), "?", label, reference=label) for n, label in enumerate(LABELS)
    ]
    return Pope(tuple(items))


@pytest.fixture(scope="module")
def compared():
    """`louder` answers as `plain`, but shouts its noes, which half of the scorers then read as yes."""
    answers = {
        "plain": ["yes", "yes", "no", "no", "no", "yes"],
        "louder": ["yes", "yes", "yes", "NO", "NO", "NO"],
        "dotted": ["yes", "yes", "Yes.", "no", "no", "yes"],
    }
    conditions = {label: AnswerSet(tuple(given)) for label, given in answers.items()}
    return compare_conditions(pope(), conditions, {}, 0)


def test_answers_that_scorers_read_differently_are_counted(compared):
    plain = compared["plain"]["figures"]["s"]["disagreement"]
    assert plain == {
        "scorers": ["official", "harness", "opera", "vcd", "vlmevalkit", "regaze"],
        "answers": {"plain": {"different": 0, "opposite": 0}},
    }
    louder = compared["methods"]["louder"]["figures"]["s"]["disagreement"]
    assert louder["answers"]["edited"] == {"different": 3, "opposite": 3}  # "NO" is yes for POPE's own script
    dotted = compared["methods"]["dotted"]["figures"]["s"]["disagreement"]
    assert dotted["answers"]["edited"] == {"different": 1, "opposite": 0}  # "Yes." is neither for lmms-eval


def test_a_sign_that_depends_on_the_scorer_is_named(compared):
    louder = compared["methods"]["louder"]["figures"]["s"]["disagreement"]
    # In truth all six answers are right, and four of the plain model.
    assert louder["worse"] == ["official"]
    assert louder["better"] == ["harness", "opera", "vcd", "vlmevalkit", "regaze"]
    assert louder["sign_depends"] is True
    dotted = compared["methods"]["dotted"]["figures"]["s"]["disagreement"]
    assert (dotted["better"], dotted["worse"]) == (["official", "opera", "vcd", "vlmevalkit", "regaze"], [])
    assert dotted["equal"] == ["harness"]
    assert dotted["sign_depends"] is False


def test_tables_say_so(compared):
    benchmark = {"benchmark": {}, "generation": {}, "numbers": {}, **compared, "controls_of": {}}
    checked = BenchmarkResults.model_validate(finite(benchmark)).model_dump()
    assert tables.disagreement_note(checked) == (
        "Answers that the scorers (official, harness, opera, vcd, vlmevalkit, regaze) read differently (as "
        "opposites): plain 0, louder 3 (3), dotted 1. The sign of the difference to plain depends on the "
        "scorer: louder is better by harness, opera, vcd, vlmevalkit, regaze and worse by official."
    )
    assert tables.disagreement_note({**checked, "methods": {}}) == (
        "Answers that the scorers (official, harness, opera, vcd, vlmevalkit, regaze) read differently (as "
        "opposites): 0."
    )


def test_readings_that_depend_on_the_right_answer():
    references = [VideoReference("s", 0, "basic", label) for label in ("yes", "no")]
    released, own = ReleasedScorer("official", "1"), ReadingScorer("regaze", "1")
    assert released.readings(references, ["Yes and no"] * 2) == ["yes", "no"]
    assert own.readings(references, ["Yes and no", "No."]) == ["other", "no"]
    assert released.readings(references, ["perhaps", "Yes"]) == ["other", "yes"]


def test_one_scorer_cannot_disagree(compared, monkeypatch):
    own = pope().scorers()[-1]
    monkeypatch.setattr(Pope, "scorers", lambda self: (own,))
    scores = pope().score({"plain": LABELS}, seed=0)
    assert "disagreement" not in scores["s"]
    assert tables.disagreement_note({"plain": {"figures": scores}, "methods": {}}) == ""
