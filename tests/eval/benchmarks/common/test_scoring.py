"""The comparison of two conditions: intervals, paired tests, and what they are based on."""

from __future__ import annotations

import math

import pytest

from regaze.eval.benchmarks.common import scoring
from regaze.eval.benchmarks.common.yes_no import METRICS, OFFICIAL


def compare(labels, answers, per_image=2):
    """Compare by POPE's rule; every `per_image` questions are about one image."""
    clusters = [i // per_image for i in range(len(labels))]
    return scoring.compare(OFFICIAL, labels, answers, clusters=clusters, seed=0)


def test_comparison_is_paired_and_its_intervals_hold_the_figures():
    labels = ["yes", "no"] * 20
    plain = ["yes", "yes"] * 10 + ["yes", "no"] * 10  # 10 false alarms
    edited = ["yes", "no"] * 15 + ["yes", "yes"] * 2 + ["no", "no"] * 3  # 2 false alarms, 3 misses
    scores = compare(labels, {"plain": plain, "edited": edited})
    assert scores["plain"]["accuracy"]["value"] == 0.75
    assert scores["edited"]["accuracy"]["value"] == 35 / 40
    assert (scores["difference"]["only_plain_correct"], scores["difference"]["only_edited_correct"]) == (
        5,
        10,
    )
    # Ten images gain an answer, five lose one.
    assert "mcnemar_p" not in scores["difference"]
    assert scores["difference"]["permutation_p"] == pytest.approx(
        2 * sum(math.comb(15, k) for k in range(6)) / 2**15
    )
    assert scores["statistics"] == {
        "items": 40,
        "clusters": 20,
        "intervals": "bootstrap by cluster",
        "test": "permutation by cluster, exact",
        "share": "accuracy",
    }
    assert scores["difference"]["accuracy"]["value"] == pytest.approx(0.125)
    for condition in ("plain", "edited", "difference"):
        for figure in METRICS:
            low, value, high = (scores[condition][figure][key] for key in ("low", "value", "high"))
            assert low <= value <= high or (math.isnan(low) and figure == "recall" and value == 1.0)
    assert compare(labels, {"plain": plain, "edited": edited}) == scores


def test_the_same_answers_differ_by_exactly_nothing():
    labels = ["yes", "no", "no", "yes"] * 5
    answers = ["yes", "no", "yes", "no"] * 5
    difference = compare(labels, {"plain": answers, "edited": answers})["difference"]
    assert difference["permutation_p"] == 1.0
    for figure in ("accuracy", "precision", "recall", "f1", "yes_ratio"):  # how much it might have varied
        assert difference[figure]["value"] == 0.0  # is more than answers that never did can tell
        assert math.isnan(difference[figure]["low"])


def test_intervals_are_wider_when_images_fail_as_a_whole():
    """40 questions right or wrong image by image are fewer observations than 40 independent ones."""
    labels = ["yes"] * 40
    answers = ["yes"] * 20 + ["no"] * 20

    def width(figure: str, per_image: int) -> float:
        plain = compare(labels, {"plain": answers}, per_image)["plain"]
        return plain[figure]["high"] - plain[figure]["low"]

    assert width("recall", 10) > 1.5 * width("recall", 1)
    assert width("accuracy", 10) > 1.5 * width("accuracy", 1)


def test_a_gain_on_few_images_is_less_than_one_on_many():
    """Twelve answers gained: on twelve images, and on two of six questions each."""
    labels = ["yes"] * 72
    plain, spread, lumped = (["yes"] * 72 for _ in range(3))
    plain[:12] = ["no"] * 12
    alone = compare(labels, {"plain": plain, "edited": spread}, 1)
    together = compare(labels, {"plain": plain, "edited": lumped}, 6)
    assert alone["statistics"]["test"] == "McNemar, exact"
    assert alone["statistics"]["intervals"].startswith("Wilson (differences: Newcombe) of accuracy")
    assert alone["difference"]["mcnemar_p"] == pytest.approx(2 / 2**12)
    assert together["difference"]["permutation_p"] == pytest.approx(2 / 2**2)
    assert together["difference"]["design_effect"] > 5
    one, other = alone["difference"]["accuracy"], together["difference"]["accuracy"]
    assert one["value"] == other["value"] == pytest.approx(1 / 6)
    assert other["high"] - other["low"] > 1.5 * (one["high"] - one["low"])


def test_undefined_figures_have_no_interval():
    scores = compare(["yes", "no"] * 4, {"plain": ["no"] * 8})["plain"]
    assert all(math.isnan(scores["precision"][key]) for key in ("value", "low", "high"))
    one_image = compare(["yes", "no"], {"plain": ["yes", "no"]})["plain"]
    assert one_image["recall"]["value"] == 1.0
    assert math.isnan(one_image["recall"]["low"])
    assert math.isnan(one_image["accuracy"]["low"])
    single = compare(["yes"], {"plain": ["yes"]})["plain"]
    assert single["accuracy"]["low"] > 0  # Wilson needs no second image
