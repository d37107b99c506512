"""Our reading of multiple-choice answers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regaze.eval.benchmarks.common.multiple_choice import read_choice

OPTIONS = ("dog", "cat", "T-shirt", "on")
#: The table of the protocol, numbers 31 to 40.
TABLE = {
    "(B)": "B",
    "B. cat": "B",
    "A cat": "B",
    "Answer: B": "B",
    "A is wrong, so B": "B",
    "A or B": "",
    "None of the above": "",
    "Because it is big": "",
    "C. T-shirt": "C",
    "<think>(A) or (C)?</think>\n\nThe answer is D": "D",
}


@pytest.mark.parametrize(("answer", "letter"), TABLE.items())
def test_the_table_of_the_protocol(answer, letter):
    assert read_choice(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *[("B. cat, because A is a dog", "B"), ("B. cat\nC. T-shirt", ""), ("A. dog or B. cat", "")],
        *[("A: dog\nB: cat\nAnswer: C", "C"), ("C because A and B are wrong", "C"), ("B is wrong", "")],
        *[
            ("The cat is not a dog", "B"),
            ("It's not A, it's B", "B"),
            ("cat or dog", ""),
            ("E", ""),
            ("B or E", ""),
        ],
        *[
            ("It is on the cat", "B"),
            ("e.g. cat", "B"),
            ("A、B", ""),
            ("我选B。", "B"),
            ("T", ""),
            ("A dog", "A"),
        ],
        *[("A/B", ""), ("A & B", ""), ("A B", ""), ("D/A", ""), ("N/A", ""), ("N / A", ""), ("- B", "B")],
        ("B " * 10_000, "B"),
        ("A cat " * 10_000, "B"),
    ],
)
def test_more_answers(answer, letter):
    assert read_choice(answer, OPTIONS) == letter


def test_the_longest_of_overlapping_options_counts():
    assert read_choice("It looks dark red to me", ("red", "dark red", "blue")) == "B"
    assert read_choice("There are 3 of them", ("2", "3")) == "B"
    assert read_choice("I cannot tell", ("can", "bottle")) == ""


def test_the_proposed_readings(shared):
    content = json.loads((shared / "goldens" / "benchmarks/answer_readings/choice.json").read_text())
    options = list(content["options"].values())
    assert len(content["rows"]) >= 50
    read = {row["text"]: read_choice(row["text"], options) for row in content["rows"]}
    assert read == {row["text"]: row["careful"] or "" for row in content["rows"]}


@given(
    st.sampled_from([answer for answer, letter in TABLE.items() if letter and "<" not in answer]),
    st.sampled_from(
        ["{}", "**{}**", "<answer>{}</answer>", r"\boxed{{\text{{{}}}}}", "Final answer: {}", "{}</s>"]
    ),
    st.sampled_from(["{}", "<think>A? C!</think>{}", "A or D</think>\n{}"]),
)
def test_a_wrapped_answer_reads_as_the_answer(answer, wrapper, block):
    assert read_choice(block.format(wrapper.format(answer)), OPTIONS) == TABLE[answer]
