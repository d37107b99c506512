"""The figure that decides, and which trial is the best by it."""

from __future__ import annotations

import math

import pytest
from standins import write_pope

from regaze.errors import InputError
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.comparison.conditions import AnswerSet
from regaze.eval.tuning.choice import Criterion, best_trial, score_trials
from regaze.eval.tuning.grids import Trial


@pytest.fixture
def pope(tmp_path):
    """Five questions on three images: yes, no; yes, no; yes."""
    return write_pope(tmp_path)


TRIALS = [Trial(label, {}, None) for label in "abcd"]
#: Right answers: 3, 3, 4, 4 of 5; yes: 5, 1, 4, 2.
ANSWERS = {
    "plain": ["Yes"] * 5,
    "a": ["Yes", "Yes", "Yes", "Yes", "Yes"],
    "b": ["Yes", "No", "No", "No", "No"],
    "c": ["Yes", "No", "Yes", "Yes", "Yes"],
    "d": ["Yes", "No", "No", "No", "Yes"],
}


def chosen(pope, text, answers=ANSWERS):
    given = {label: AnswerSet(tuple(each)) for label, each in answers.items()}
    about, entries = score_trials(pope, given, Criterion.named(text, pope), seed=0)
    return best_trial(TRIALS, entries, about["criterion"]), about, entries


def test_the_best_trial_by_the_tested_figure_and_of_equal_ones_the_first(pope):
    best, about, entries = chosen(pope, None)
    assert best.label == "c"
    assert about["criterion"] == {
        "split": "random",
        "scorer": "official",
        "figure": "accuracy",
        "lower_is_better": False,
        "ties": "of equal trials the one that comes first in the grid",
    }
    assert [about["questions"], about["images"], about["left_out"]] == [5, 3, 0]
    accuracy = {label: entry["figures"]["accuracy"]["value"] for label, entry in entries.items()}
    assert accuracy == pytest.approx({"plain": 0.6, "a": 0.6, "b": 0.6, "c": 0.8, "d": 0.8})
    assert entries["d"]["difference"]["value"] == pytest.approx(0.2)
    assert entries["d"]["answers_changed"] == 3
    assert entries["d"]["text"]["yes_ratio"] == pytest.approx(0.4)


@pytest.mark.parametrize(("text", "label"), [("precision", "b"), ("recall", "a"), ("regaze.accuracy", "c")])
def test_another_figure_decides(pope, text, label):
    assert chosen(pope, text)[0].label == label


def test_less_is_better_of_some_figures(pope):
    answers = ANSWERS | {"c": ["Well"] * 5, "a": ["Maybe"] * 5}
    best, about, _ = chosen(pope, "unreadable", answers)
    assert best.label == "b"
    assert about["criterion"]["scorer"] == "regaze"
    assert about["criterion"]["lower_is_better"] is True
    criterion = Criterion.named("chair_i", Chair.of_demo(2))
    assert (criterion.scorer, criterion.figure) == ("chair", "chair_i")


def test_all_trials_are_scored_on_the_questions_that_all_of_them_answered(pope):
    given = {label: AnswerSet(tuple(each)) for label, each in ANSWERS.items()}
    given["d"] = AnswerSet(given["d"].answers, {2: "a bad day"})  # of the second image
    about, entries = score_trials(pope, given, Criterion(), seed=0)
    assert [about["questions"], about["left_out"]] == [3, 2]
    values = {label: entry["figures"]["accuracy"]["value"] for label, entry in entries.items()}
    assert values == pytest.approx({"plain": 2 / 3, "a": 2 / 3, "b": 2 / 3, "c": 1, "d": 1})


def test_a_trial_without_a_value_is_not_chosen():
    criterion = {"figure": "f", "lower_is_better": False}
    entries = {"b": {"figures": {"f": {"value": math.nan}}}, "c": {"figures": {"f": {"value": -1.0}}}}
    assert best_trial(TRIALS, entries, criterion).label == "c"
    assert best_trial(TRIALS, {"b": entries["b"]}, criterion) is None
    assert best_trial(TRIALS, {}, criterion) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "accurcy",
            "pope has the figures accuracy, precision, recall, f1, unreadable of the",
        ),
        ("harness.unreadable", "criterion harness.unreadable: pope has the figures"),
        ("yes_ratio", "neither more nor less of yes_ratio is better"),
    ],
)
def test_a_figure_that_cannot_decide_is_refused(pope, text, message):
    with pytest.raises(InputError, match=message):
        Criterion.named(text, pope)
