"""Whether a method beats the best of its controls."""

from __future__ import annotations

import math
from typing import Any

import pytest

from regaze.eval.comparison.verdicts import add_verdicts, against_controls, leading_figure, p_value


def entry(figure: str, plain: float, edited: float, p: float = 0.5) -> dict[str, Any]:
    """Results of a condition by one scorer on one split."""

    def estimate(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    compared = {
        "plain": {figure: estimate(plain)},
        "edited": {figure: estimate(edited)},
        "difference": {figure: estimate(edited - plain), "permutation_p": p},
    }
    return {"figures": {"all": {"questions": 3, "official": compared}}}


def verdict(
    method: float, controls: dict[str, float], plain: float = 0.5, lower: bool = False, p: float = 0.01
):
    calls = []

    def score(first: str, second: str):
        calls.append((first, second))
        return entry("f", {"plain": plain, **controls}[first], method, p)["figures"]

    found = against_controls(
        "m",
        entry("f", plain, method),
        {name: entry("f", plain, value) for name, value in controls.items()},
        {"official": ("f",)} if lower else {},
        score,
        "plain",
    )
    assert len(calls) == 1
    return found["all"]["official"]


@pytest.mark.parametrize(
    ("method", "controls", "lower", "best", "better"),
    [
        (0.8, {"a": 0.6, "b": 0.7}, False, "b", True),
        (0.65, {"a": 0.6, "b": 0.7}, False, "b", False),
        (0.65, {"a": 0.3}, False, "plain", True),  # doing nothing is better than the control
        (0.4, {"a": 0.3}, False, "plain", False),
        (0.2, {"a": 0.3, "b": 0.6}, True, "a", True),
        (0.4, {"a": 0.3, "b": 0.6}, True, "a", False),
        (0.4, {"a": 0.6}, True, "plain", True),
        (0.5, {"a": 0.5}, False, "a", False),
        (0.8, {"a": math.nan, "b": 0.6}, False, "b", True),
        (0.8, {}, False, "plain", True),
    ],
)
def test_the_best_control_is_the_rival(method, controls, lower, best, better):
    found = verdict(method, controls, lower=lower)
    rival = {"plain": 0.5, **controls}[best]
    assert (found["best"], found["better"], found["figure"]) == (best, better, "f")
    assert found["value"] == pytest.approx(method - rival)
    assert found["low"] < found["value"] < found["high"]


def test_a_method_beats_them_by_a_difference_that_is_no_chance_among_so_many():
    methods = [verdict(0.8, {"a": 0.6}, p=p) for p in (0.01, 0.03, 0.04)]
    methods.append(verdict(0.4, {"a": 0.6}, p=1e-6))  # worse, and surely so
    add_verdicts([{"all": {"official": each}} for each in methods])
    assert [each["holm_p"] for each in methods] == pytest.approx([0.03, 0.06, 0.06, 4e-6])
    assert [each["beats"] for each in methods] == [True, False, False, False]


def test_without_a_test_nothing_is_beaten():
    untested = verdict(0.8, {"a": 0.6}, p=math.nan)
    add_verdicts([{"all": {"official": untested}}])
    assert untested["p"] is None
    assert untested["beats"] is False
    assert untested["holm_p"] is None


def test_the_figure_that_is_tested():
    compared = {"plain": {"f1": {}, "accuracy": {}}, "statistics": {"share": "accuracy"}}
    assert leading_figure(compared) == "accuracy"
    assert leading_figure({**compared, "statistics": {"share": None}}) == "f1"
    assert p_value({"mcnemar_p": 0.5}) == 0.5
    assert p_value({"permutation_p": math.nan}) is None
