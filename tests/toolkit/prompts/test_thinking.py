"""Where thinking ends in the answers of reasoning models."""

from __future__ import annotations

import pytest

from regaze.toolkit.prompts.thinking import Continued, after_thinking, is_marker, open_block

BLOCKS = [
    ("<think>", "</think>"),
    ("<THINK>", "</THINK>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<analysis>", "</analysis>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
]


@pytest.mark.parametrize(("opening", "closing"), BLOCKS)
def test_the_text_after_the_last_block_is_the_answer(opening, closing):
    assert after_thinking(f"{opening}a{closing}\n\nb") == "\n\nb"
    assert after_thinking(f"a{closing}b") == "b"
    assert after_thinking(f"{opening}a{opening}b{closing}c{closing}d") == "d"
    assert after_thinking(f"a {opening}b{closing}") == ""
    assert after_thinking(f"{opening}a") is None
    assert after_thinking(f"{opening}a{closing}b{opening}c") is None
    assert is_marker(opening)
    assert is_marker(closing)


@pytest.mark.parametrize("text", ["", "Yes", "think: a < b, [thin], </b> think", "analysis of the picture"])
def test_a_text_without_thinking_stays_as_it_is(text):
    assert after_thinking(text) is text


def test_channels_of_gpt_oss():
    thought = "<|channel|>analysis<|message|>no</think><|end|><|start|>assistant"
    assert after_thinking(f"{thought}<|channel|>final<|message|>Yes<|return|>") == "Yes"
    assert after_thinking(f"{thought}<|channel|>final <|constrain|>json<|message|>Yes") == "Yes"
    assert after_thinking(f"{thought}<|channel|>commentary<|message|>Yes") is None
    assert after_thinking("analysisThere is a dog. assistantfinalYes") == "Yes"  # special tokens were dropped


def test_the_stages_of_llava_cot_end_in_the_conclusion():
    stages = "<SUMMARY>a</SUMMARY>\n<CAPTION>There is a dog</CAPTION>\n<REASONING>b</REASONING>\n"
    assert after_thinking(f"{stages}<CONCLUSION>No</CONCLUSION>") == "<CONCLUSION>No</CONCLUSION>"
    assert after_thinking(stages) is None


def test_a_block_that_the_prompt_opened():
    assert open_block("user: ?\nassistant: <think>\n") == "<think>"
    assert open_block("<think>\n\n</think>\n\n") == open_block("assistant:") == ""
    cut, done = (Continued.of(text, "<think>") for text in ("There is a", "Hm.</think>Yes"))
    assert after_thinking(cut) is None
    assert after_thinking(done) == "Yes"
    assert cut == "There is a"  # what the model wrote, for everybody else
    assert Continued.of("Yes", "") == "Yes"
    assert after_thinking(Continued.of("Yes", "")) == "Yes"
