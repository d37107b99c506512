"""Which controls methods have on a benchmark, under which labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from regaze.eval.benchmarks.common.base import Item
from regaze.eval.comparison.control_plan import ControlPlan, kind_of_answers, matched_length
from regaze.interventions import HGAI, ICD, PAI, VCD, DeCo, HeadKnockout
from regaze.interventions.controls import (
    NearTie,
    PlausibilityCut,
    PreferYes,
    RandomHeads,
    StopAfter,
    UniformColumns,
    YesOffset,
)

SAMPLED = {"do_sample": True}


def items(*labels: str, **more) -> list[Item]:
    return [Item(str(n), "s", Path(f"{n}.png"), "?", label, **more) for n, label in enumerate(labels)]


YES_NO, TEXTS, OTHER = items("yes", "no"), items("", ""), items("a cup", "b")


def test_answers_are_yes_or_no_texts_or_neither():
    assert [kind_of_answers(each) for each in (YES_NO, TEXTS, OTHER)] == ["yes/no", "texts", ""]
    assert kind_of_answers([*YES_NO, *TEXTS]) == ""
    assert kind_of_answers(items("", options=("a", "b"))) == ""


@pytest.mark.parametrize(
    ("questions", "general"),
    [(YES_NO, ["prefer-yes", "near-tie"]), (TEXTS, ["drop-last-sentence"]), (OTHER, [])],
    ids=["yes-no", "texts", "other"],
)
def test_the_questions_choose_the_general_controls(questions, general):
    plan = ControlPlan.of_methods(questions, {"m": PAI()}, {})
    assert list(plan.controls) == ["uniform-columns of m", *general] == plan.of["m"]
    assert plan.controls["uniform-columns of m"] == UniformColumns(PAI())


def test_general_controls_can_be_others():
    """A threshold that was tuned, only where the answers are yes or no."""
    offset = YesOffset(-3.0)
    plan = ControlPlan.of_methods(YES_NO, {"m": VCD()}, {}, (NearTie(), offset))
    assert plan.of["m"] == ["near-tie", "yes-offset offset=-3.0"]
    assert plan.controls["yes-offset offset=-3.0"] == offset
    assert ControlPlan.of_methods(TEXTS, {"m": VCD()}, {}, (NearTie(), offset)).of["m"] == []


def test_a_cut_is_a_control_of_sampling_and_beams():
    for options, names in (
        ({}, []),
        (SAMPLED, ["plausibility-cut beta=0.1"]),
        ({"num_beams": 2}, ["plausibility-cut beta=0.1"]),
    ):
        assert ControlPlan.of_methods(OTHER, {"m": VCD()}, options).of["m"] == names


def test_candidates_alone_are_a_control_of_sampling_too():
    assert ControlPlan.of_methods(OTHER, {"m": DeCo()}, {}).of["m"] == []
    sampled = ControlPlan.of_methods(OTHER, {"m": DeCo()}, SAMPLED).of["m"]
    assert sampled == ["deco alpha=0.0", "sharpen alpha=0.6"]


def test_what_methods_share_is_run_once():
    methods = {"a": VCD(), "b": ICD(), "c": VCD(beta=0.3), "d": VCD(beta=0.0), "e": VCD(beta=0.2)}
    plan = ControlPlan.of_methods(OTHER, methods, SAMPLED)
    a, c, e = "plausibility-cut beta=0.1", "plausibility-cut beta=0.3", "plausibility-cut"
    assert plan.of == {"a": [a], "b": [a], "c": [c], "d": [], "e": [e]}
    assert plan.controls == {a: PlausibilityCut(0.1), c: PlausibilityCut(0.3), e: PlausibilityCut()}


def test_a_control_that_is_among_the_methods_stays_there():
    methods = {"near-tie": NearTie(), "yes": PreferYes(), "prefer-yes": HGAI()}
    plan = ControlPlan.of_methods(YES_NO, methods, {})
    own = "uniform-columns of prefer-yes"
    assert plan.of["near-tie"] == ["prefer-yes of near-tie"]  # that label is taken by another method
    assert plan.of["yes"] == ["near-tie"]
    assert plan.of["prefer-yes"] == [own, "prefer-yes of prefer-yes", "near-tie"]
    assert set(plan.controls) == {own, "prefer-yes of near-tie", "prefer-yes of prefer-yes"}


def test_draws_are_told_apart():
    heads = HeadKnockout(heads=((0, 0),))

    class Twice(HeadKnockout):
        def controls(self):
            return [replace(RandomHeads(heads), seed=seed) for seed in (0, 1)]

    assert ControlPlan.of_methods(OTHER, {"m": Twice()}, {}).of["m"] == [
        "random-heads of m",
        "random-heads of m seed=1",
    ]


def test_other_objects_have_no_controls_of_their_own():
    class Foreign:
        def to_dict(self):
            return {"method": "foreign"}

    assert ControlPlan.of_methods(OTHER, {"m": Foreign()}, {}).of == {"m": []}


def test_texts_are_cut_to_the_same_mean_length():
    """(10 + 20 + 30) / 3 = 20; cut to 12 they are 34 / 3 long, to 13 it is 12."""
    assert matched_length([10, 20, 30], [12, 12, 12]) == StopAfter(tokens=13)
    assert matched_length([10, 20, 30], [1, 2]) == StopAfter(tokens=1)
    assert matched_length([10, 20, 30], [19]) == StopAfter(tokens=27)
    assert matched_length([10, 20, 30], [19.7]) is matched_length([10, 20, 30], [20]) is None
    assert matched_length([10, 20, 30], [40]) is None
    assert matched_length([], [1]) is matched_length([1], []) is None
