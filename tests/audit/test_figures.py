"""Figures of a method from the run that tested it, on answers made by hand."""

from __future__ import annotations

import math

import pytest

from regaze.audit import figures
from regaze.audit.figures import cost, damage
from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.plain_text import Perplexity
from regaze.eval.comparison.conditions import AnswerSet, compare_conditions

PASSAGES = ["one", "two", "three", "four"]


def text(edited):
    """Passages of ten tokens, whose tokens cost two nats each without a method."""
    items = [Item(name, "text", None, "Write.", name, reference=name, continuation=name) for name in PASSAGES]
    benchmark = Perplexity(tuple(items))
    plain = [f"{-20.0 - n:.6f} of 10 tokens" for n in range(4)]
    given = [f"{value:.6f} of 10 tokens" for value in edited]
    sets = {"plain": AnswerSet(tuple(plain)), "pai": AnswerSet(tuple(given))}
    compared = compare_conditions(benchmark, sets, {}, 0, {"pai": []})
    answers = {name: {"plain": a, "pai": b} for name, a, b in zip(PASSAGES, plain, given, strict=True)}
    return figures.Tested(
        benchmark,
        {
            **compared,
            "methods": _complete(compared),
            "controls_of": {"pai": []},
            "numbers": {"regaze": ["logprob", "perplexity"]},
        },
        answers,
        0,
        False,
    )


def _complete(compared):
    return {label: {"error": None, **entry} for label, entry in compared["methods"].items()}


CHECKED = {
    "benchmarks": {"mmstar": {"numbers": {"regaze": []}}},
    "damage": {
        "benchmark": "mmstar",
        "questions": 60,
        "error": None,
        "scorer": "regaze",
        "figure": "accuracy",
        "plain": {"value": 0.7, "low": 0.6, "high": 0.8},
        "methods": {
            "pai": {
                "error": None,
                "value": {"value": 0.6, "low": 0.5, "high": 0.7},
                "difference": {"value": -0.1, "low": -0.2, "high": 0.01},
                "detectable": 0.12,
                "p": 0.07,
                "damaged": False,
            }
        },
    },
}


@pytest.mark.parametrize(("loss", "damaged"), [(0.0, False), (0.04, False), (0.06, True), (-0.2, False)])
def test_text_that_is_less_likely_by_more_than_a_twentieth_of_a_nat_is_damage(loss, damaged):
    found = damage(CHECKED, "pai", text([-20.0 - n - 10 * loss for n in range(4)]))["text"]
    assert found["damaged"] == damaged
    assert found["plain"] == pytest.approx(math.exp(2.15))
    assert found["perplexity"] == pytest.approx(math.exp(2.15 + loss))
    assert found["passages"] == 4


def test_a_method_that_excludes_tokens_has_no_perplexity_and_no_damage_by_that():
    found = damage(CHECKED, "pai", text([-20.0, -1019.0, -22.0, -2020.0]))["text"]
    assert found == {"error": "it excludes tokens of 2 of 4 passages", "damaged": None}


def test_damage_is_that_of_the_check_and_none_without_one():
    found = damage(CHECKED, "pai", None)
    assert (found["difference"], found["difference_interval"], found["text"]) == (-0.1, [-0.2, 0.01], None)
    assert damage({"damage": None}, "pai", None) is None
    assert damage(CHECKED, "vcd", None)["error"] == "it was not asked"


def test_speed_is_of_all_benchmarks_and_in_proportion_to_the_plain_model():
    def spent(tokens, seconds):
        return {"cost": {"tokens": tokens, "seconds": seconds}}

    run = {
        "benchmarks": {
            "pope": {"plain": spent(100, 5.0), "methods": {"pai": spent(100, 10.0)}},
            "captions": {"plain": spent(900, 5.0), "methods": {"pai": spent(900, 10.0)}},
        }
    }
    assert cost(run, "pai") == {"tokens_per_second": 50.0, "ratio": 2.0}
    assert cost(run, "vcd") == {"tokens_per_second": None, "ratio": None}
