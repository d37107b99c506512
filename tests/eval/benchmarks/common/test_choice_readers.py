"""Letters as the harnesses read them, against what their functions gave."""

from __future__ import annotations

import json

import pytest

from regaze.eval.benchmarks.common.choice_readers import read_lmms_eval, read_vlmevalkit, strip_lmms_eval
from regaze.eval.benchmarks.mmstar.scorers import read_official


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "goldens/benchmarks/answer_readings/choice.json").read_text())


def test_letters_are_those_of_the_scripts(golden):
    options = list(golden["options"].values())
    for row in golden["rows"]:
        text = row["text"]
        assert read_official(text) == (row["mmstar_official"] or ""), text
        assert read_lmms_eval(text) == (row["mmstar_lmms_eval"] or ""), text
        assert read_vlmevalkit(text, options) == row["vlmevalkit_mcq_no_judge"].replace("Z", ""), text


def test_reasoning_is_cut_out_as_in_lmms_eval(shared):
    path = shared / "goldens/benchmarks/answer_readings/reasoning_strip.json"
    for row in json.loads(path.read_text())["rows"]:
        assert strip_lmms_eval(row["text"]) == row["lmms_eval_default_tags"], row["text"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A or B. The answer is A", "A"),  # the letter of the longer phrase stands later
        ("I choose B, not C", "C"),
        ("(A) and B.", "B"),
        ("It is D", "D"),
        ("cat", ""),
        ("", ""),
    ],
)
def test_lmms_eval_takes_the_last_letter_of_the_strongest_form(answer, letter):
    assert read_lmms_eval(answer) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B is what I see on this photograph", ""),  # too far from the end, and too long for a text
        ("Failed to obtain answer via API", ""),
        ("a cat", "B"),
        ("Cannot determine the answer B", ""),
        ("nan", ""),
        ("dog or cat", ""),
    ],
)
def test_vlmevalkit_reads_what_stands_at_the_end(answer, letter):
    assert read_vlmevalkit(answer, ["dog", "cat", "nan", "nan"]) == letter
