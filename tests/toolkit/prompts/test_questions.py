"""Another question in a prompt of which only the ids are known."""

from __future__ import annotations

import pytest
from family_checks import case_of
from models import picture
from zoo.every import VISION, runs, skip_if_older

from regaze.errors import InputError
from regaze.toolkit.prompts.questions import question_text, with_question
from regaze.toolkit.prompts.token_map import PromptTokens, Role

QUESTION, OTHER = "Is there a dog in the image?", "This image contains a, b. Based on this, what?"

FAMILIES = (
    "llava_next",
    "internvl",
    "qwen2_vl",
    "gemma3",
    "idefics3",
    "mistral3",
    "blip-2",
    "janus",
    "mllama",
)


def prompt(gaze, images, question, system=None):
    """The ids and the roles of a prompt."""
    inputs = gaze.inputs([[picture(i) for i in range(images)]], [question], system)
    tokens = gaze.tokens(inputs)
    parts = (tuple(part[0].tolist()) for part in (tokens.roles, tokens.view, tokens.cell))
    return inputs["input_ids"][0].tolist(), PromptTokens(*parts, tokens.views[0])


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("system", [None, "Answer in one word."])
def test_it_is_the_prompt_with_that_question(gaze, images, system):
    ids, sample = prompt(gaze, images, QUESTION, system)
    assert question_text(ids, sample, gaze.reader) == QUESTION
    changed, roles = with_question(ids, sample, OTHER, gaze.reader)
    want = prompt(gaze, images, OTHER, system)
    assert changed == want[0]
    assert roles == want[1]
    assert with_question(changed, roles, QUESTION, gaze.reader) == (ids, sample)


@pytest.mark.parametrize("name", FAMILIES)
def test_so_it_is_in_other_families(name):
    entry = next(each for each in VISION if each.name == name)
    skip_if_older(entry)
    if not runs(entry):
        pytest.skip(f"{name} does not run under this transformers")
    case = case_of(entry)
    prompts = []
    for question in (QUESTION, OTHER):
        inputs = case.gaze.inputs([case.pictures[0]], [question])
        tokens = case.gaze.tokens(inputs)
        parts = (tuple(part[0].tolist()) for part in (tokens.roles, tokens.view, tokens.cell))
        prompts.append((inputs["input_ids"][0].tolist(), PromptTokens(*parts, tokens.views[0])))
    assert with_question(*prompts[0], OTHER, case.gaze.reader) == prompts[1]


def test_prompts_without_a_place_for_it(gaze):
    ids, sample = prompt(gaze, 1, QUESTION)
    nothing = PromptTokens(tuple(min(role, Role.IMAGE) for role in sample.roles), sample.view, sample.cell)
    query = [i for i, role in enumerate(sample.roles) if role == Role.QUERY]
    roles = list(sample.roles)
    roles[query[2]] = int(Role.IMAGE)
    for other, message in (
        (nothing, "a prompt has no question"),
        (PromptTokens(tuple(roles), sample.view, sample.cell, sample.views), "not in one piece"),
    ):
        with pytest.raises(InputError, match=message):
            with_question(ids, other, OTHER, gaze.reader)
