"""Figures of a method from the run that tested it, on answers made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from regaze.audit import figures
from regaze.audit.figures import cost, damage
from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.plain_text import Perplexity
from regaze.eval.benchmarks.pope.benchmark import Pope
from regaze.eval.comparison.conditions import AnswerSet, compare_conditions

PASSAGES = ["one", "two", "three", "four"]


def text(edited, excluded=()):
    """Passages of ten tokens, whose tokens cost two nats each without a method."""
    items = [Item(name, "text", None, "Write.", name, reference=name, continuation=name) for name in PASSAGES]
    benchmark = Perplexity(tuple(items))
    plain = [f"{-20.0 - n:.6f} of 10 tokens" for n in range(4)]
    given = [
        f"{value:.6f} of 10 tokens{', 1 excluded' if n in excluded else ''}" for n, value in enumerate(edited)
    ]
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


SCENES = 40


def pope(right, failed=None, refused=None):
    """A question about each scene, all rightly yes; `right` of them each condition answers so.

    Args:
        right: {condition: number of scenes}. failed: {condition: number of scenes, the last ones}.
    """
    items = [
        Item(str(n), "random", Path(f"{n}.png"), "Is it there?", "yes", reference="yes")
        for n in range(SCENES)
    ]
    benchmark, sets, answers = Pope(tuple(items)), {}, {item.key: {} for item in items}
    for label, number in right.items():
        given = ["Yes" if n < number else "No" for n in range(SCENES)]
        lost = range(SCENES - (failed or {}).get(label, 0), SCENES)
        sets[label] = AnswerSet(tuple(given), dict.fromkeys(lost, "it raised"))
        for n in range(SCENES):
            if n not in lost:
                answers[str(n)][label] = given[n]
    names = [label for label in right if label not in ("plain", "pai")] + list(refused or {})
    results = compare_conditions(benchmark, sets, refused or {}, 0, {"pai": names})
    entries = {
        part: {label: {"error": None, **each} for label, each in results[part].items()}
        for part in ("methods", "controls")
    }
    about = {"controls_of": {"pai": names}, "numbers": {"regaze": []}}
    return figures.Tested(benchmark, {**results, **entries, **about}, answers, 0, True).of_method("pai")


def test_the_control_that_counts_is_the_one_that_is_least_shown_to_be_beaten():
    """Of twenty scenes more than plain, heads have 2 and columns 12: p of 18 of 18 and of 8 of 8."""
    found = pope({"plain": 10, "pai": 30, "random-heads of pai": 12, "uniform-columns of pai": 22})
    assert found["best_control"] == "uniform-columns of pai"
    assert found["controls"]["random-heads of pai"]["p"] == pytest.approx(2 / 2**18)
    assert found["p_control"] == pytest.approx(2 / 2**8)
    assert found["own_controls"] == ["random-heads of pai", "uniform-columns of pai"]


def test_a_control_that_is_better_has_not_been_beaten_however_small_its_p():
    found = pope({"plain": 10, "pai": 20, "near-tie": 19, "uniform-columns of pai": 32})
    assert (found["best_control"], found["p_control"]) == ("uniform-columns of pai", 1.0)
    assert found["own_controls"] == ["uniform-columns of pai"]


def test_controls_that_did_not_run_are_named_and_count_for_nothing():
    found = pope(
        {"plain": 10, "pai": 20, "near-tie": 11, "random-heads of pai": 12, "yes-offset": 13},
        failed={"near-tie": 4, "random-heads of pai": 5, "yes-offset": 40},
        refused={"uniform-columns of pai": "no such layers"},
    )
    assert list(found["controls"]) == ["near-tie"]
    assert found["own_controls"] == []
    assert found["controls_failed"] == {
        "random-heads of pai": "too many of its answers failed",
        "yes-offset": "pope: no question is left to score, every one failed or stands with one",
        "uniform-columns of pai": "no such layers",
    }


def test_what_is_left_out_is_that_of_both_and_a_method_without_answers_has_an_error():
    found = pope({"plain": 10, "pai": 20}, failed={"plain": 3, "pai": 1})
    assert (found["failed"], found["left_out"], found["questions"]) == (1, 3, 37)
    assert pope({"plain": 10, "pai": 20}, failed={"pai": 40}) is None


CHECKED = {
    "benchmarks": {"mmstar": {"numbers": {"regaze": []}, "methods": {"pai": {"left_out": 0}}}},
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
    found = damage(CHECKED, "pai", text([-20.0 - n - 10 * loss + 0.1 * (-1) ** n for n in range(4)]))["text"]
    assert found["damaged"] == damaged
    assert found["plain"] == pytest.approx(math.exp(2.15))
    assert found["perplexity"] == pytest.approx(math.exp(2.15 + loss))
    assert found["passages"] == 4


def test_a_method_that_excludes_tokens_has_no_perplexity_and_no_damage_by_that():
    found = damage(CHECKED, "pai", text([-20.0, -1019.0, -22.0, -2020.0], {1, 3}))["text"]
    assert found == {"error": "it excludes tokens of 2 of 4 passages", "damaged": None}


def test_a_wrecked_language_model_excludes_no_tokens_and_is_damage():
    found = damage(CHECKED, "pai", text([-820.0, -921.0, -722.0, -823.0]))["text"]
    assert (found["error"], found["damaged"]) == (None, True)


def test_a_check_of_which_too_much_failed_is_none():
    failed = {"numbers": {"regaze": []}, "methods": {"pai": {"left_out": 7}}}
    found = damage({**CHECKED, "benchmarks": {"mmstar": failed}}, "pai", None)
    assert found["damaged"] is None
    assert found["error"] == "7 of 60 questions were left out, because answers failed"
    failed["methods"]["pai"]["left_out"] = 6
    assert damage({**CHECKED, "benchmarks": {"mmstar": failed}}, "pai", None)["damaged"] is False


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
