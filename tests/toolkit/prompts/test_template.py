"""Variables of chat templates, thinking that a template opens, and special tokens that mark thinking."""

from __future__ import annotations

import copy

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, LlamaConfig, PreTrainedTokenizerFast

import regaze
from regaze.errors import BadParameterError
from regaze.eval.run.fingerprint import model_fingerprint
from regaze.toolkit.prompts.families import family_of
from regaze.toolkit.prompts.prompt_reader import PromptReader
from regaze.toolkit.prompts.template import template_variables

TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% generation %}{% if add_generation_prompt %}assistant: {% endif %}{% endgeneration %}"
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think></think>{% endif %}"
    "{% if style %} {{ style }}{% endif %}"
)


def tokenizer(**added: bool) -> PreTrainedTokenizerFast:
    """Of words; `added`: tokens, and whether they are special."""
    words = {word: i for i, word in enumerate(("<pad>", "</s>", "Is", "this", "a", "probe", "Yes", "no"))}
    base = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", eos_token="</s>", chat_template=TEMPLATE
    )
    made.add_tokens([AddedToken(text, special=special) for text, special in added.items()])
    return made


def reader(processor, **template_args) -> PromptReader:
    return PromptReader(processor, family_of(LlamaConfig()), template_args)


def test_variables_of_a_template_are_those_that_it_reads():
    assert template_variables(tokenizer()) == {"enable_thinking", "style"}
    named = tokenizer()
    for text, variables in {
        "{% set a = b %}{{ a }}": {"b"},
        "{% for m in messages %}{% set t = m %}{{ t }}{% endfor %}": set(),
        "{% set a = a | default(1) %}{{ a }}": {"a"},
        "{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}": {"a"},
    }.items():
        named.chat_template = text
        assert template_variables(named) == variables, text
    named.chat_template = {"default": "{{ a }}", "tool_use": "{{ b }}"}
    assert template_variables(named) == {"a"}
    for other in (None, "{% if %}", object()):
        named.chat_template = other
        assert template_variables(named) == set()


def test_arguments_are_part_of_every_prompt():
    plain, quiet = reader(tokenizer()), reader(tokenizer(), enable_thinking=False, style="brief")
    assert plain.render("Is this?", 0).text.endswith("assistant: <think>\n")
    assert quiet.render("Is this?", 0).text.endswith("assistant: <think></think> brief")
    assert (plain.thinking_opening, quiet.thinking_opening) == ("<think>", "")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"enable_thinkng": True},
            "enable_thinkng=True: not of this chat template; it has enable_thinking, style",
        ),
        ({"messages": []}, "messages=.*not of this chat template"),
        ({"style": {1}}, "style=.*expected a JSON value"),
    ],
)
def test_what_a_template_does_not_have_is_refused(values, message):
    with pytest.raises(BadParameterError, match=message):
        reader(tokenizer(), **values)
    bare = tokenizer()
    bare.chat_template = None
    with pytest.raises(BadParameterError, match="it has none to set"):
        reader(bare, enable_thinking=True)


def test_special_tokens_that_mark_thinking_are_kept_in_answers():
    plain = reader(tokenizer())
    ids = plain.tokenizer("no Yes </s>")["input_ids"]
    assert plain.decode([[*ids, 0, 0]]) == ["no Yes"]
    marked = reader(tokenizer(**{"[THINK]": True, "[/THINK]": True, "<|im_end|>": True}))
    ids = marked.tokenizer("[THINK] no [/THINK] Yes <|im_end|> </s>")["input_ids"]
    (text,) = marked.decode([[*ids, 0, 0]])
    assert text.split() == ["[THINK]", "no", "[/THINK]", "Yes"]


def test_arguments_are_part_of_the_fingerprint():
    model, processor = regaze.load("demo")
    processor = copy.deepcopy(processor)
    processor.chat_template += "{% if add_generation_prompt and brief %}{% endif %}"
    gazes = [regaze.wrap(model, processor, template_args=given) for given in (None, {}, {"brief": True})]
    plain, empty, brief = (model_fingerprint(gaze, "demo") for gaze in gazes)
    assert plain == empty != brief
