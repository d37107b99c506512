"""Inside, outside, or cannot say: the rules on cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from regaze.eval.reproduction import verdict
from regaze.eval.reproduction.verdict import Estimate, Range


@pytest.mark.parametrize(
    ("elsewhere", "expected"),
    [((), (85.85, 85.95)), ((86.3,), (85.85, 86.35)), ((84.2, 87.0), (84.15, 87.05))],
)
def test_the_published_range_is_the_span_of_the_values_with_their_rounding(elsewhere, expected):
    assert verdict.published_range(85.9, elsewhere, 0.05) == pytest.approx(expected)


def test_a_published_difference_has_the_rounding_of_both_values():
    assert verdict.published_gain(87.1, 88.6, (), 0.05) == pytest.approx((1.4, 1.6))
    assert verdict.published_gain(87.1, 88.6, (-3.1, 4.4), 0.05) == pytest.approx((-3.1, 4.4))
    assert verdict.published_gain(87.1, 88.6, (0.6,), 0.05) == pytest.approx((0.6, 1.6))


def test_an_interval_is_widened_on_both_sides_of_its_value():
    assert verdict.widened(Estimate(10.0, 8.0, 11.0), 2.0) == (10.0, 6.0, 12.0)
    assert verdict.widened(Estimate(10.0), 2.0) == (10.0, None, None)


def test_two_draws_of_500_images_differ_by_the_root_of_two():
    """CHAIR_s 47 of 500 captions: 4.4 points for one draw, 6.2 between two."""
    margin = 1.96 * math.sqrt(0.47 * 0.53 / 500) * 100
    assert margin == pytest.approx(4.4, abs=0.05)
    assert margin * verdict.sampling_factor(500, 500) == pytest.approx(6.2, abs=0.05)
    assert verdict.sampling_factor(500, 10**9) == pytest.approx(1.0)
    assert verdict.sampling_factor(1000, 250) == pytest.approx(math.sqrt(5))


def test_bonferroni_in_standard_errors():
    assert verdict.correction_factor(1) == 1.0
    # z of 1 - 0.025 / 10 is 2.8070, of 1 - 0.025 is 1.9600
    assert verdict.correction_factor(10) == pytest.approx(2.8070 / 1.9600, abs=1e-4)


def test_a_mean_over_splits_has_their_mean_arms():
    splits = [Estimate(80.0, 79.0, 82.0), Estimate(90.0, 87.0, 92.0)]
    assert verdict.mean(splits) == (85.0, 83.0, 87.0)
    assert verdict.mean([Estimate(80.0, 79.0, 82.0), Estimate(90.0)]) == (85.0, None, None)
    assert verdict.mean([Estimate(80.0, 79.0, 82.0), Estimate(None)]) == (None, None, None)


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        (Estimate(86.5, 85.5, 87.5), Range(85.85, 85.95), "inside"),
        (Estimate(86.5, 85.95, 87.5), Range(85.85, 85.95), "inside"),  # they touch
        (Estimate(88.0, 86.5, 89.5), Range(84.0, 86.0), "outside"),
        (Estimate(80.0, 79.0, 81.0), Range(84.0, 86.0), "outside"),
        (Estimate(None), Range(84.0, 86.0), "cannot say"),
        (Estimate(85.0), Range(84.0, 86.0), "cannot say"),
    ],
)
def test_an_interval_against_a_range(ours, theirs, found):
    judged = verdict.judge(ours, theirs)
    assert judged.verdict == found
    assert bool(judged.reason) == (found != "inside")


def test_among_many_figures_one_may_be_outside_by_chance():
    ours, theirs = Estimate(88.0, 86.5, 89.5), Range(84.0, 86.0)
    # alone the interval ends at 86.5; among 10 it reaches 88 - 1.5 * 1.432 = 85.85
    assert verdict.judge(ours, theirs, figures=1).verdict == "outside"
    assert verdict.judge(ours, theirs, figures=10).verdict == "cannot say"
    assert verdict.judge(ours, Range(84.0, 85.8), figures=10).verdict == "outside"


def test_a_difference_must_be_told_from_none():
    wide, narrow = Estimate(0.8, -0.5, 2.1), Estimate(0.8, 0.2, 2.1)
    gain = Range(1.4, 1.6)
    assert verdict.judge(wide, gain).verdict == "inside"  # of a level
    assert verdict.judge(wide, gain, is_gain=True).verdict == "cannot say"
    assert verdict.judge(narrow, gain, is_gain=True).verdict == "inside"
    assert verdict.judge(wide, Range(-3.1, 4.4), is_gain=True).verdict == "inside"  # sources disagree on it
    assert verdict.judge(Estimate(-0.8, -2.1, 0.5), gain, is_gain=True).verdict == "outside"


def test_the_same_value_of_the_same_questions_is_inside():
    gain, own = Range(0.4, 0.6), Range(0.4, 0.6)
    assert verdict.judge(Estimate(0.5, -1.3, 2.1), gain, own=own, is_gain=True).verdict == "inside"
    assert verdict.judge(Estimate(0.5), gain, own=own, is_gain=True).verdict == "inside"
    assert verdict.judge(Estimate(0.0), gain, own=own, is_gain=True).verdict == "cannot say"


@pytest.mark.parametrize(
    ("verdicts", "limits", "deviations", "found", "reason"),
    [
        (["inside", "inside"], [], [], "inside", ""),
        (["inside", "inside"], [], ["prompt is not stated"], "inside", ""),
        (["inside", "cannot say"], [], [], "cannot say", "1 of 2 figures"),
        (["inside", "outside", "cannot say"], [], [], "outside", "1 of 3 figures"),
        (["inside", "outside"], [], ["prompt is not stated"], "cannot say", "prompt is not stated"),
        (["outside"], ["the first 20 questions"], [], "cannot say", "the first 20 questions"),
        (["inside"], ["the first 20 questions"], [], "cannot say", "the first 20 questions"),
        ([], [], [], "cannot say", "0 of 0"),
    ],
)
def test_the_verdict_on_a_recipe(verdicts, limits, deviations, found, reason):
    judged = verdict.overall(verdicts, limits, deviations)
    assert judged.verdict == found
    assert reason in judged.reason


def test_versions_must_agree():
    assert verdict.together(["inside", "inside"]) == ("inside", "")
    assert verdict.together(["outside", "outside"]).verdict == "outside"
    assert verdict.together(["inside", "outside"]).verdict == "cannot say"
    assert "version" in verdict.together(["inside", "cannot say"]).reason
