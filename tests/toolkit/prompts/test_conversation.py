"""Earlier turns, few-shot examples and pictures between texts: the prompt is the template's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_checks import case_of
from models import picture, tiny_llama
from zoo.every import VISION, skip_if_older

import regaze
from regaze import Role
from regaze.errors import InputError
from regaze.interventions import CARVE, VCD
from regaze.toolkit.prompts.conversation import Conversation, Message, Shown, parse_messages
from regaze.toolkit.prompts.families import MediaInputs
from regaze.toolkit.prompts.questions import question_text, with_question
from regaze.toolkit.prompts.token_map import PromptTokens

FAMILIES = ("llava_next", "internvl", "qwen2_vl", "gemma3", "idefics3", "mistral3", "janus", "mllama")
QUESTION = "What is on the big dog?"
IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


#: What the last message may hold.
LAST: dict[str, list[dict[str, str]]] = {
    "image first": [IMAGE, text(QUESTION)],
    "image last": [text(QUESTION), IMAGE],
    "no image": [text(QUESTION)],
    "between": [text("First:"), IMAGE, text("Second:"), IMAGE, text(QUESTION)],
}


def messages(last: list[dict[str, str]], shots: int = 2) -> list[dict[str, Any]]:
    """Examples with a picture each, and a last message."""
    found: list[dict[str, Any]] = [{"role": "system", "content": [text("Be short.")]}]
    for number in range(shots):
        found.append({"role": "user", "content": [IMAGE, text(f"Is there a cat {number}?")]})
        found.append({"role": "assistant", "content": [text("Yes.")]})
    return [*found, {"role": "user", "content": last}]


def count(given: list[dict[str, Any]]) -> int:
    return sum(part == IMAGE for message in given for part in message["content"])


def own_inputs(processor: Any, given: list[dict[str, Any]], pictures: list[Any]) -> Any:
    """What the processor makes of messages that hold their pictures."""
    images = iter(pictures)
    shown = [
        {**m, "content": [{**p, "image": next(images)} if p == IMAGE else p for p in m["content"]]}
        for m in given
    ]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return processor.apply_chat_template(shown, return_tensors="pt", **options)


def check(gaze: regaze.Gaze, last: list[dict[str, str]]) -> None:
    """Tokens, pixels and roles of a conversation; those that are read from the ids alone."""
    given = messages(last)
    pictures = [picture(number) for number in range(count(given))]
    inputs = gaze.inputs([pictures], [given])
    own = own_inputs(gaze.processor, given, pictures)
    assert torch.equal(inputs["input_ids"], own["input_ids"])
    assert all(torch.equal(inputs[name], own[name]) for name in own if name.startswith("pixel_values"))
    tokens, ids = gaze.tokens(inputs), inputs["input_ids"][0].tolist()
    places = tokens.columns(Role.QUERY)
    assert gaze.reader.tokenizer.decode([ids[i] for i in places]).strip() == QUESTION
    assert len(places) == int(places[-1] - places[0]) + 1
    assert {view.image for view in tokens.views[0]} == set(range(count(given)))
    assert [i for i, view in enumerate(tokens.view[0]) if view >= 0] == tokens.columns(Role.IMAGE).tolist()
    assert not tokens.mask(Role.OUTPUT).any()
    in_order = gaze.reader.apply_template([Message("user", ("a", Shown(), "b"))])
    if last is LAST["between"] and "a b" in in_order:
        return  # the demo's template puts pictures first, so that ids do not tell where a text began
    elsewhere = regaze.wrap(gaze.model, gaze.processor)  # which has not built it
    assert torch.equal(elsewhere.tokens(inputs).roles, tokens.roles)
    assert gaze.reader.read(ids, MediaInputs(inputs, len(pictures))).roles == tuple(tokens.roles[0].tolist())


@pytest.mark.parametrize("last", LAST)
def test_the_prompt_is_that_of_the_template(gaze, last):
    check(gaze, LAST[last])


@pytest.mark.parametrize("name", FAMILIES)
def test_so_it_is_in_other_families(name):
    entry = next(each for each in VISION if each.name == name)
    skip_if_older(entry)
    for last in LAST.values():
        check(case_of(entry).gaze, last)


def test_a_batch_is_its_prompts_one_by_one():
    gaze = regaze.wrap(*regaze.load("demo"))
    given = [messages(last, shots) for last, shots in ((LAST["image first"], 1), (LAST["between"], 0))]
    questions = [*given, "Is there a dog in the image?"]
    images: list[Any] = [[picture(n) for n in range(count(each))] for each in given] + [picture(5)]
    together = gaze.ask(images, questions, batch_size=3, max_new_tokens=3)
    alone = [gaze.ask(i, q, max_new_tokens=3)[0] for i, q in zip(images, questions, strict=True)]
    assert together == alone
    batch, roles = gaze.inputs(images, questions), []
    for image, question in zip(images, questions, strict=True):
        roles.append(gaze.tokens(gaze.inputs(image, question)).roles[0])
    for row, own in zip(gaze.tokens(batch).roles, roles, strict=True):
        assert torch.equal(row[len(row) - len(own) :], own)


def test_a_text_is_a_conversation_of_one_message(gaze):
    image = picture(0)
    plain = gaze.inputs(image, QUESTION)
    for question, images in (
        ([{"role": "user", "content": QUESTION}], image),
        ([{"role": "user", "content": [IMAGE, text(QUESTION)]}], [image]),
        ([{"role": "user", "content": [{"type": "image", "image": image}, text(QUESTION)]}], None),
        (Conversation.of(QUESTION, 1), image),
    ):
        inputs = gaze.inputs(images, question)
        assert torch.equal(inputs["input_ids"], plain["input_ids"])
        assert torch.equal(inputs["pixel_values"], plain["pixel_values"])
    with_system = gaze.inputs(image, QUESTION, "Be short.")["input_ids"]
    given = [{"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTION}]
    assert torch.equal(gaze.inputs(image, given)["input_ids"], with_system)


def test_pictures_fill_the_places_in_order():
    given = parse_messages(
        [
            {"role": "user", "content": [IMAGE, "a", {"type": "image", "image": "own.png"}]},
            {"role": "assistant", "content": "b"},
            {
                "role": "user",
                "content": ["c", {"type": "image_url", "image_url": {"url": "x/own"}}, "?"],
            },
        ]
    )
    asked, pictures = Conversation(given).filled(["1", "2", "3"])
    assert pictures == ["1", "own.png", "2", "3", "x/own"]
    assert [len(message.shown) for message in asked.messages] == [2, 0, 3]
    assert asked.messages[2].parts == (Shown(), Shown(), "c", Shown(), "?")
    assert (asked.question, asked.texts) == ("?", ["a", "b", "c", "?"])
    assert asked.with_question("x").texts == ["a", "b", "c", "x"]


def test_text_models_have_conversations(gaze):
    model = regaze.wrap(tiny_llama(), gaze.processor.tokenizer)
    model.processor.chat_template = gaze.processor.chat_template
    given = [
        {"role": "user", "content": "Is it?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": QUESTION},
    ]
    inputs = model.inputs(None, given)
    own = model.processor.apply_chat_template(given, add_generation_prompt=True, tokenize=False)
    ids = model.processor(own, add_special_tokens=model.reader.adds_special_tokens(own))["input_ids"]
    assert inputs["input_ids"][0].tolist() == ids
    columns = model.tokens(inputs).columns(Role.QUERY)
    assert model.processor.decode(inputs["input_ids"][0][columns]).strip() == QUESTION


def test_another_question_leaves_the_earlier_turns(gaze):
    """As methods put another question in its place, of which only the ids are known."""
    pictures = [picture(n) for n in range(3)]

    def prompt(last: str) -> tuple[list[int], PromptTokens]:
        inputs = gaze.inputs([pictures], [messages([IMAGE, text(last)])])
        tokens = gaze.tokens(inputs)
        parts = (tuple(part[0].tolist()) for part in (tokens.roles, tokens.view, tokens.cell))
        return inputs["input_ids"][0].tolist(), PromptTokens(*parts, tokens.views[0])

    assert question_text(*prompt(QUESTION), gaze.reader) == QUESTION
    assert with_question(*prompt(QUESTION), "Is it red?", gaze.reader) == prompt("Is it red?")


def test_methods_act_on_conversations_or_refuse_them(gaze):
    given, pictures = messages(LAST["image first"], 1), [picture(0), picture(1)]
    with gaze.using(VCD()):
        assert len(gaze.ask([pictures], [given], max_new_tokens=2)) == 1
    with pytest.raises(InputError, match="carve asks questions that are texts: give it no messages"):
        gaze.ask([pictures], [given], method=CARVE(), max_new_tokens=2)


@pytest.mark.parametrize(
    ("question", "images", "message"),
    [
        ([{"role": "user", "content": [IMAGE]}], 1, "ends with a message of the user that holds a text"),
        ([{"role": "assistant", "content": "Yes."}], 0, "ends with a message of the user that holds a text"),
        ([{"role": "user", "content": [IMAGE, "a", IMAGE]}], 1, "places for 2 images, but 1 were given"),
        (
            [{"role": "tool", "content": "a"}],
            0,
            "messages, message 1: expected {.* of system, user, assistant",
        ),
        ([{"role": "user"}], 0, "messages, message 1: expected"),
        ([{"role": "user", "content": 3}], 0, "message 1: the content is a text or a list of parts, got int"),
        (
            [{"role": "user", "content": [{"type": "video", "video": 3}]}],
            0,
            'message 1: a part is {"type": "text"',
        ),
        ([{"role": "user", "content": "What is <image>?"}], 0, "contains '<image>', which stands for"),
        (
            [
                {"role": "user", "content": "a"},
                {"role": "system", "content": "a"},
                {"role": "user", "content": "a"},
            ],
            0,
            "message 2: a role is user or assistant, or system in the first message; got 'system'",
        ),
    ],
)
def test_what_is_no_conversation(gaze, question, images, message):
    with pytest.raises(InputError, match=message):
        gaze.inputs([picture(0)] * images, question)


def test_what_else_is_refused(gaze):
    given = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(InputError, match="begin with a system message; leave out `system`, or that message"):
        gaze.inputs(None, given, "Be short.")
    with pytest.raises(InputError, match="places for 2 images and 0 videos, but there are 1 and 0"):
        gaze.reader.render(Conversation.of("a", 2), 1)
    blip = case_of(next(each for each in VISION if each.name == "blip-2")).gaze
    with pytest.raises(
        InputError, match="no chat template: ask questions as texts, without earlier messages"
    ):
        blip.inputs(
            picture(0), [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, *given[1:]]
        )
