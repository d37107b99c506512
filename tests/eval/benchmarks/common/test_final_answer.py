"""The decisive part of answers: wrappers, markup, and texts made to be slow."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from regaze.eval.benchmarks.common.final_answer import (
    final_answer,
    is_cut_in_thinking,
    plain_text,
    without_thinking,
)
from regaze.eval.benchmarks.common.multiple_choice import read_choice
from regaze.eval.benchmarks.common.yes_no_reading import read_yes_no


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ("<answer>No</answer> <answer>Yes</answer>", "Yes"),
        ("<answer>a <answer>Yes", "Yes"),
        ("Yes</answer>", "Yes"),
        ("<CONCLUSION> Yes </CONCLUSION> no", "Yes"),
        ("<answer><|begin_of_box|>Yes<|end_of_box|></answer>", "Yes"),
        ("<|begin_of_box|>No<|end_of_box|> <|begin_of_box|>Yes<|end_of_box|>", "Yes"),
        (r"\boxed{No}, no: \boxed{\text{Yes}}", "Yes"),
        (r"\boxed{a \{ {b} \mathrm{c}} \boxed{d", r"a \ b c"),
        (r"\boxed{\boxed{Yes}}", "Yes"),
        (r"$\textbf{Yes}$", "Yes"),
        ("**Final Answer**\n\n### Yes", "Yes"),
        ("My answer: no. Then again, the answer is: **yes**.", "yes"),
        ("I cannot say what the answer is.", "I cannot say what the answer is."),
        ('{"answer": "Yes"}', "Yes"),
        ("ASSISTANT: Yes", "Yes"),
        ("<|im_start|>assistant\nYes<|im_end|>", "Yes"),
        ("Yes\nUser: And a cat?\nAssistant: No", "Yes"),
        ("USER: A dog? ASSISTANT: Yes</s>", "Yes"),
        ("✅ Ｙｅｓ\u200b\ufeff", "Yes"),
        ("(B) cat", "B. cat"),
        ("It isn’t 'there'", "It isn't there"),
        ("答案：B", "B"),
        ("<think>Yes", ""),
        ("", ""),
    ],
)
def test_the_decisive_part(answer, final):
    assert final_answer(answer) == final


def test_free_text_keeps_every_character_but_thinking_and_tags():
    caption = "  A *dog* \u200b and\n\n a {cat}.  "
    assert without_thinking(caption) is caption
    assert without_thinking(f"<think>An elephant.</think>\n\n{caption}") == caption.strip()
    assert without_thinking("<think>a</think><answer>A dog.</answer>") == "A dog."
    assert without_thinking("<think>An elephant") == ""
    assert [is_cut_in_thinking(text) for text in ("<think>a", "<think>a</think>", "a")] == [
        True,
        False,
        False,
    ]


@pytest.mark.skipif(sys.flags.optimize > 0, reason="counts calls")
def test_runs_of_combining_marks_are_normalised_in_bounded_parts(monkeypatch):
    # CPython sorts a run of combining marks by insertion: quadratic in its length.
    lengths = []

    def normalize(form: str, text: str) -> str:
        lengths.append(len(text))
        return unicodedata.normalize(form, text)

    module = sys.modules[plain_text.__module__]
    fake = type("unicodedata", (), {"normalize": staticmethod(normalize), "category": unicodedata.category})
    monkeypatch.setattr(module, "unicodedata", fake)
    plain_text("a" + "\u0315\u0300" * 5000)
    assert max(lengths) <= 257
    assert plain_text("na\u0303o") == "não"  # a letter and its mark are one part


HOSTILE = [
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        r"\boxed{",
        "{",
        "}",
        "(",
        "<",
        "<|",
        " ",
        "\n",
        "\u0315\u0300",
    ),
    *(
        "answer ",
        "answer is ",
        "A ",
        "B is ",
        "A or ",
        "not ",
        "there is ",
        "there is no ",
        "i can not ",
        "no ",
        "say ",
    ),
    *(
        "yes or no ",
        r"\a",
        "a. ",
        "\nuser:",
        "<|channel|>",
        "<|channel|>final<|message|>",
        "not think ",
        "没有",
        "ﷺ",
        "😀",
    ),
]


@pytest.mark.parametrize("part", HOSTILE, ids=ascii)
def test_a_hostile_text_is_read_at_once(part):
    # A step in quadratic time would take an hour here, and the suite's limit of time would end it.
    for start in ("", "Yes "):
        text = start + part * (200_000 // len(part))
        assert read_yes_no(text) in ("yes", "no", "other")
        assert read_choice(text, ["cat", "dog"]) in ("A", "B", "")
        assert len(without_thinking(text)) <= len(text)
