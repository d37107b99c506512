"""Our reading of yes/no answers, against what careful people say of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regaze.eval.benchmarks.common.yes_no_reading import read_yes_no

#: The table of the protocol, numbers 1 to 30; the others are choices.
TABLE = {
    "Yes.": "yes",
    "**No**": "no",
    "No\nThere is only a cat.": "no",
    "": "other",
    "not sure": "other",
    "I don't know.": "other",
    "There is a dog in the image.": "yes",
    "The image does not contain a dog.": "no",
    "I cannot see a dog.": "no",
    "I cannot see images.": "other",
    "Yes and no": "other",
    "No. Yes.": "other",
    "Not yes": "no",
    "Yes, not only a dog but also a cat.": "yes",
    "Nope": "no",
    "Yesterday there was one.": "other",
    "是的。": "yes",
    "没有。": "no",
    "不确定": "other",
    "Ｙｅｓ": "yes",
    "<think>Is there a dog? yes, I see one.</think>\n\nNo.": "no",
    "I think there is no dog.</think>\nNo": "no",
    "<think>The picture shows a dog on": "other",
    "<think>no</think><answer>yes</answer>": "yes",
    "<think>not obvious</think><answer><|begin_of_box|>Yes<|end_of_box|></answer>": "yes",
    r"$\boxed{\text{no}}$": "no",
    "Final answer: **No**": "no",
    "<answer>No</answer> <answer>Yes</answer>": "yes",
    "<THINK>a</THINK>Yes": "yes",
    "Yes<|im_end|>": "yes",
}
MORE = {
    "yes": (
        *(
            "It's a yes.",
            "Sure.",
            "Absolutely!",
            "There's a dog.",
            "A dog is visible on the left.",
            "Yes it is",
        ),
        *("Yes, there is nothing else.", "Yes, no doubt.", "Yes, a dog with no collar.", "I'd say yes."),
        *(
            "Yes, it might be a labrador.",
            "The picture shows a sofa. So, yes.",
            "That is correct.",
            "1",
            "Y",
            "对",
        ),
        *(
            "图中有一只狗",
            "Please answer yes or no. Yes",
            "A. Yes",
            "Sure! There is a dog.",
            "It is not false",
        ),
        *("Yea", "Да", "sì", "Option A: Yes", "No doubt, there is a dog."),
    ),
    "no": (
        *("- No", "• No, there is none.", "Nej", "B: No", "No matter how I look, there is no dog."),
        *("There isn't any dog.", "I don't think so.", "I don't think there is a dog.", "Of course not!"),
        *("No dogs are visible.", "It is not true that there is a dog.", "Unfortunately, no.", "不是", "0"),
        *(
            "There is no dog, only a cat.",
            "The statement is false.",
            "图中没有狗",
            "No, the image shows a cat",
        ),
        *("Let me think: it might be a dog.\nSo no.", "Not that I can see", "Answer with yes or no: no"),
    ),
    "other": (
        *(
            "yes or no",
            "yes/no",
            "No idea",
            "Possibly yes",
            "Yes, probably",
            "No, but I am not sure",
            "None",
            "N/A",
        ),
        *("Yes, there is no dog.", "There is a dog. There is no dog.", "I can't tell", "It could be a dog."),
        *(
            "Note",
            "Because it is big",
            "The sky is blue",
            "True-ish",
            "No. Wait, yes.",
            "无法判断",
            "Not necessarily",
        ),
        *("No problem.", "No wonder", "a: yes, b: no"),
        *("Sure! Here is what I see", "It is unclear whether there is a dog.", "是否", "Right of the sofa"),
    ),
}


@pytest.mark.parametrize(("answer", "reading"), TABLE.items())
def test_the_table_of_the_protocol(answer, reading):
    assert read_yes_no(answer) == reading


@pytest.mark.parametrize(
    ("answer", "reading"), [(answer, reading) for reading, answers in MORE.items() for answer in answers]
)
def test_more_answers(answer, reading):
    assert read_yes_no(answer) == reading


def test_the_proposed_readings(shared):
    """The column `careful` is a proposal: so far nothing in it is contested here."""
    folder = shared / "goldens/benchmarks/answer_readings"
    for name, names in (
        ("yes_no", {"yes": "yes", "no": "no", None: "other"}),
        ("true_false", {"true": "yes", "false": "no", None: "other"}),
    ):
        rows = json.loads((folder / f"{name}.json").read_text())["rows"]
        assert len(rows) >= 20
        read = {row["text"]: read_yes_no(row["text"]) for row in rows}
        assert read == {row["text"]: names[row["careful"]] for row in rows}


THOUGHTS = st.sampled_from(
    ["", "No dog. Yes? No!", "yes " * 9, r"\boxed{no}", "<answer>no</answer>", "没有", "I see {"]
)
BLOCKS = st.sampled_from(
    [
        *(
            "{1}",
            "<think>{0}</think>{1}",
            "{0}</think>\n\n{1}",
            "◁think▷{0}◁/think▷{1}",
            "[THINK]{0}[/THINK]{1}",
        ),
        "<|channel|>analysis<|message|>{0}<|end|><|start|>assistant<|channel|>final<|message|>{1}<|return|>",
        "<SUMMARY>{0}</SUMMARY><CAPTION>{0}</CAPTION><REASONING>{0}</REASONING><CONCLUSION>{1}</CONCLUSION>",
    ]
)
WRAPPERS = st.sampled_from(
    [
        *(
            "<answer>{}</answer>",
            "<|begin_of_box|>{}<|end_of_box|>",
            "**{}**",
            "`{}`",
            '"{}"',
            "[{}]",
            "✅ {}",
            "\u200b{}",
        ),
        *(
            r"\boxed{{{}}}",
            r"$\boxed{{\text{{{}}}}}$",
            "Answer: {}",
            "The answer is {}",
            "### Final answer\n{}",
            "{}</s>",
        ),
        *("{}<|im_end|>", "ASSISTANT: {}", "<|im_start|>assistant\n{}"),
    ]
)
READABLE = [
    answer
    for answer, reading in TABLE.items()
    if reading != "other" and "<" not in answer and "\\" not in answer
]


@given(st.sampled_from(READABLE), st.lists(WRAPPERS, max_size=2, unique=True), BLOCKS, THOUGHTS)
def test_a_wrapped_answer_reads_as_the_answer(answer, wrappers, block, thought):
    wrapped = answer
    for wrapper in wrappers:
        wrapped = wrapper.format(wrapped)
    assert read_yes_no(block.format(thought, wrapped)) == TABLE[answer]
