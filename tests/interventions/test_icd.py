"""ICD: the disturbed prompts and their roles, and scores against separate forwards."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    answer_of,
    assert_same_scores,
    check_batch,
    check_full_forward,
    check_json,
    check_neutral,
    inputs_of,
    plain_logits,
    scores,
)
from models import logits_of, picture

from regaze import Role
from regaze.errors import BadParameterError, InputError
from regaze.interventions.icd import ICD, PREFIXES, prefixed
from regaze.interventions.vcd import VCD, add_noise
from regaze.toolkit.prompts.token_map import PromptTokens

QUESTION = "Is there a dog in the image?"


def disturbed(gaze, inputs, prefix):
    """The branch's ids and roles of a batch of one."""
    tokens, ids = gaze.tokens(inputs), inputs["input_ids"][0].tolist()
    sample = PromptTokens(
        *(tuple(x[0].tolist()) for x in (tokens.roles, tokens.view, tokens.cell)), tokens.views[0]
    )
    return prefixed(ids, sample, prefix, gaze.reader)


def decoded(gaze, ids, roles, *wanted):
    kept = [token for token, role in zip(ids, roles, strict=True) if role in wanted]
    return gaze.reader.tokenizer.decode(kept)


@pytest.mark.parametrize("images", [0, 1, 2])
def test_the_prefix_takes_the_place_of_the_system_message(gaze, images):
    """The branch is, token by token and role by role, the prompt that has the prefix for a system message."""
    pictures = [picture(i) for i in range(images)]
    given = gaze.inputs([pictures], [QUESTION], system="Answer in one word.")
    want = gaze.inputs([pictures], [QUESTION], system=PREFIXES["confused"])
    ids, sample = disturbed(gaze, given, PREFIXES["confused"])
    tokens = gaze.tokens(want)
    assert ids == want["input_ids"][0].tolist()
    assert list(sample.roles) == tokens.roles[0].tolist()
    assert list(sample.view) == tokens.view[0].tolist()
    assert list(sample.cell) == tokens.cell[0].tolist()
    assert sample.views == tokens.views[0]


@pytest.mark.parametrize(("images", "role"), [(0, Role.SYSTEM), (1, Role.SEPARATOR), (2, Role.SEPARATOR)])
def test_without_a_system_message_it_goes_before_the_question(gaze, images, role):
    pictures = [picture(i) for i in range(images)]
    prefix = PREFIXES["objects"]
    given = gaze.inputs([pictures], [QUESTION])
    ids, sample = disturbed(gaze, given, prefix)
    want = gaze.inputs([pictures], [f"{prefix}\n{QUESTION}"])["input_ids"][0].tolist()
    if images:
        assert ids == want
    else:  # the question keeps the tokens it has behind "USER: ", with their space
        decode = gaze.reader.tokenizer.decode
        assert decode(ids) == decode(want).replace(f"\n{QUESTION}", f"\n {QUESTION}")
    assert decoded(gaze, ids, sample.roles, Role.QUERY).strip() == QUESTION
    assert decoded(gaze, ids, sample.roles, role).rstrip().endswith(prefix)
    assert sample.roles.count(Role.IMAGE) == 64 * images


def test_the_prefixes_are_five_different_sentences():
    assert len(set(PREFIXES.values())) == len(PREFIXES) == 5


@pytest.mark.parametrize("system", [None, "Answer in one word."])
def test_every_step_contrasts_with_a_fresh_forward_under_the_other_instruction(model, gaze, system):
    inputs, icd = gaze.inputs([picture(1)], [QUESTION], system=system), ICD(prefix="overview")
    answer, got = answer_of(gaze, inputs, icd)
    text = PREFIXES["overview"]
    other = (
        gaze.inputs([picture(1)], [f"{text}\n{QUESTION}"])
        if system is None
        else gaze.inputs([picture(1)], [QUESTION], system=text)
    )
    assert other["input_ids"].shape[1] != inputs["input_ids"].shape[1]
    want = scores(plain_logits(model, inputs, answer), plain_logits(model, other, answer), 1.0, 0.1)
    assert_same_scores(got, want)


def test_three_contexts_with_vcd(model, gaze):
    inputs = gaze.inputs([picture(1)], [QUESTION])
    with gaze.using(VCD(alpha=0.5, noise_step=900), ICD(alpha=0.7, prefix="objects")):
        logits = logits_of(model, inputs, tokens=3)
    answer = logits.argmax(-1).T
    main = plain_logits(model, inputs, answer)
    noised = {**inputs, "pixel_values": add_noise(inputs["pixel_values"], 900)}
    other = gaze.inputs([picture(1)], [f"{PREFIXES['objects']}\n{QUESTION}"])
    noised, other = (plain_logits(model, each, answer) for each in (noised, other))
    want = main + 0.5 * (main - noised) + 0.7 * (main - other)
    cut = main < main.amax(-1, keepdim=True) + torch.tensor(0.1).log()
    assert_same_scores(logits, want.masked_fill(cut, -torch.inf))


@pytest.mark.parametrize("method", [ICD(), ICD(prefix="Say nothing that is true.", alpha=2.0)])
def test_batches_also_without_an_image(gaze, method):
    together = check_batch(gaze, method)
    plain = logits_of(gaze.model, inputs_of(gaze))
    for row in range(3):
        kept = ~together[0, row].isinf()
        assert not torch.allclose(together[0, row][kept], plain[0, row][kept], atol=1e-2)


def test_neutral_strength_full_forward_and_json(gaze):
    check_neutral(gaze, ICD(alpha=0.0, beta=0.0))
    check_full_forward(gaze, ICD())
    check_json(ICD(prefix="A sentence."))


def test_right_padding_is_refused(gaze):
    inputs = dict(inputs_of(gaze))
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    inputs["input_ids"] = inputs["input_ids"].flip(1)
    with pytest.raises(InputError, match="padded on the left"), gaze.using(ICD()):
        gaze.model(**inputs)


def test_what_it_needs(gaze):
    for prefix in ("", "  "):
        with pytest.raises(BadParameterError, match="objects, attributes, unspecific, confused, overview"):
            ICD(prefix=prefix)
    ids = inputs_of(gaze, slice(0, 1))["input_ids"][0].tolist()
    sample = PromptTokens((2,) * len(ids), (-1,) * len(ids), (-1,) * len(ids))
    with pytest.raises(InputError, match="a prompt has no question"):
        prefixed(ids, sample, "Be.", gaze.reader)
