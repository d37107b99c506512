"""Confounds of a comparison: statistics of the texts and costs of the answers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from regaze.eval.benchmarks.common.base import Item
from regaze.eval.comparison import confounds
from regaze.eval.cost import Cost


def items(*labels: str) -> list[Item]:
    return [Item(str(n), "s", Path(f"{n}.png"), "?", label) for n, label in enumerate(labels)]


def test_texts_are_measured_by_hand():
    answers = ["Yes", "no", "a b c d a b c d", ""]
    measured = confounds.measure(items("yes", "no", "no", "no"), answers)
    assert measured == {
        "words": (1 + 1 + 8 + 0) / 4,
        "repeated_4grams": 1 / 5,  # abcd bcda cdab dabc abcd
        "empty": 1 / 4,
        "cut_in_thinking": 0.0,
        "yes_ratio": 1 / 4,
        "unreadable": 2 / 4,
    }
    captions = confounds.measure(items("", ""), ["a dog", "a cat on a mat"])
    assert set(captions) == {"words", "repeated_4grams", "empty", "cut_in_thinking"}
    assert captions["words"] == 3.5


def test_thinking_is_no_text_of_an_answer_and_cut_answers_are_counted():
    answers = ["<think>a b c d a b c d no</think>Yes", "<think>no dog, no dog", "a</think>no"]
    assert confounds.measure(items("yes", "no", "no"), answers) == pytest.approx(
        {
            "words": 2 / 3,
            "repeated_4grams": math.nan,
            "empty": 1 / 3,
            "cut_in_thinking": 1 / 3,
            "yes_ratio": 1 / 3,
            "unreadable": 1 / 3,
        },
        nan_ok=True,
    )


@pytest.mark.parametrize(
    ("name", "plain", "beyond", "within", "says"),
    [
        ("words", 10.0, 8.9, 9.1, "length -11%"),
        ("repeated_4grams", 0.01, 0.04, 0.02, "repetition +3.0 points"),
        ("yes_ratio", 0.5, 0.56, 0.54, "yes-ratio +6.0 points"),
        ("unreadable", 0.0, 0.02, 0.005, "unreadable +2.0 points"),
        ("cut_in_thinking", 0.1, 0.05, 0.105, "cut in thinking -5.0 points"),
    ],
)
def test_a_change_of_the_texts_is_named_beyond_its_threshold(name, plain, beyond, within, says):
    assert confounds.flags({name: plain}, {name: beyond}, Cost(), Cost()) == [says]
    assert confounds.flags({name: plain}, {name: within}, Cost(), Cost()) == []
    assert confounds.flags({name: math.nan}, {name: beyond}, Cost(), Cost()) == []
    assert confounds.flags({}, {name: beyond}, Cost(), Cost()) == []


def test_more_computation_and_memory_are_named():
    plain, twice = Cost(tokens=10, rows=10, peak_mib=100.0), Cost(tokens=10, rows=20, peak_mib=130.0)
    assert confounds.flags({}, {}, plain, twice) == ["2.0 forwards per token", "memory +30%"]
    assert confounds.flags({}, {}, plain, Cost(tokens=10, rows=12, peak_mib=120.0)) == []
