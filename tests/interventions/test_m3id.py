"""M3ID: its weight, its confidence test, and scores against separate forwards without the image."""

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
    check_padding,
    context_with,
    inputs_of,
    plain_logits,
    text_only,
)
from models import context_for, logits_of, picture

from regaze import Role
from regaze.errors import BadParameterError
from regaze.interventions.contrastive import WITHOUT_IMAGE
from regaze.interventions.m3id import M3ID
from regaze.interventions.pai import PAI
from regaze.toolkit.model.logits import combine

#: Strong from the first token on, and never sure: a random model's best token is unlikely.
STRONG = M3ID(decay=0.4, kappa=1.0)
UNSURE = torch.zeros(1, 1, 50)  # every token has a probability of 0.02


# The equations ----------------------------------------------------------------------------------------


def test_the_weight_grows_as_published_up_to_its_bound():
    t = torch.tensor([[0, 1, 10, 35, 50, 100]])
    logits = UNSURE.expand(1, 6, 50)
    published = torch.tensor([0.0, 0.0202, 0.2214, 1.0138, 1.7183, 6.3891])
    for method, want in (
        (M3ID(max_weight=None), published),
        (M3ID(), published.clamp_max(3.0)),
        (M3ID(as_released=True), published),
    ):
        torch.testing.assert_close(method.weight(logits, t)[0, :, 0], want, rtol=0, atol=5e-5)
    at = torch.tensor([[69, 70]])
    assert (M3ID().weight(logits[:, :2], at) == 3.0).flatten().tolist() == [False, True]


def test_every_row_has_its_own_confidence():
    """The first row is sure of its token (probability 0.9), the second is not."""
    sure = torch.tensor([0.9, 0.06, 0.04]).log()
    logits = torch.stack([sure, torch.tensor([0.4, 0.35, 0.25]).log()])[:, None]
    t = torch.tensor([[30], [30]])
    weight = M3ID(kappa=0.5).weight(logits, t).flatten()
    assert weight[0] == 0.0
    assert float(weight[1]) == pytest.approx(0.822119, abs=1e-5)
    assert (M3ID(kappa=0.5, as_released=True).weight(logits, t) > 0).all()


@pytest.mark.parametrize("as_released", [False, True])
def test_scores_of_the_first_token(as_released):
    torch.manual_seed(0)
    main, text = torch.randn(2, 30) * 2, torch.randn(2, 30) * 2
    method = M3ID(decay=0.5, kappa=1.0, beta=0.3, as_released=as_released)
    context, reading = context_with(main, {WITHOUT_IMAGE: text}, method)
    with reading:
        got = combine(context.logits(), [method.combine_logits(context)])[:, 0]
    weight = torch.tensor(0.5).exp() - 1
    with_image, without = main.log_softmax(-1), text.log_softmax(-1)
    want = with_image + weight * (with_image - without)
    if as_released:
        cut = main < main.amax(-1, keepdim=True) + torch.tensor(0.3).log()
        assert cut.any()
        want = want.masked_fill(cut, -torch.inf)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


# In a model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_released", [False, True])
def test_every_step_equals_separate_forwards_without_the_image_tokens(model, gaze, as_released):
    """The t-th token has the weight exp(0.4 t) - 1, at most 3."""
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    method = M3ID(decay=0.4, kappa=1.0, as_released=as_released)
    answer, got = answer_of(gaze, inputs, method)
    main, text = (plain_logits(model, each, answer) for each in (inputs, text_only(gaze, inputs)))
    weight = torch.expm1(0.4 * torch.arange(1, 5))[:, None, None]
    assert weight[3] > 3.0
    weight = weight if as_released else weight.clamp_max(3.0)
    with_image = main.log_softmax(-1)
    want = with_image + weight * (with_image - text.log_softmax(-1))
    if as_released:
        cut = main < main.amax(-1, keepdim=True) + torch.tensor(0.1).log()
        want = want.masked_fill(cut, -torch.inf)
    assert_same_scores(got, want, tolerance=5e-4)


def test_the_best_beam_has_the_score_of_its_own_tokens(model, gaze):
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    with gaze.using(STRONG):
        out = model.generate(
            **inputs,
            num_beams=3,
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
            length_penalty=0.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
    answer = out.sequences[:, inputs["input_ids"].shape[1] :]
    main, text = (
        plain_logits(model, each, answer).log_softmax(-1) for each in (inputs, text_only(gaze, inputs))
    )
    weight = torch.expm1(0.4 * torch.arange(1, 5)).clamp_max(3.0)[:, None, None]
    scores = (main + weight * (main - text)).log_softmax(-1)[:, 0]
    total = scores[torch.arange(4), answer[0]].sum()
    assert float(out.sequences_scores[0]) == pytest.approx(float(total), abs=2e-3)


def test_an_answer_that_has_begun_counts_from_its_first_token():
    roles = [
        [Role.PAD, Role.IMAGE, Role.QUERY, Role.TAIL, Role.OUTPUT, Role.OUTPUT],
        [Role.SYSTEM, Role.IMAGE, Role.IMAGE, Role.QUERY, Role.QUERY, Role.TAIL],
        [Role.IMAGE, Role.QUERY, Role.TAIL, Role.OUTPUT, Role.PAD, Role.PAD],
    ]
    context = context_for(roles)
    STRONG.branches(context)
    counted = [[0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 1], [0, 0, 1, 2, 0, 0]]
    assert context.state(STRONG)["count"].prompt.tolist() == counted


def test_a_sure_model_is_left_alone(gaze):
    """With a threshold below every probability nothing changes but the scores' constant."""
    inputs = inputs_of(gaze)
    with gaze.using(M3ID(decay=0.4, kappa=1e-6)):
        guarded = logits_of(gaze.model, inputs)
    assert_same_scores(guarded, logits_of(gaze.model, inputs))


@pytest.mark.parametrize("method", [STRONG, M3ID(decay=0.4, as_released=True)])
def test_batches_and_prompts_without_an_image(gaze, method):
    together = check_batch(gaze, method)
    plain = logits_of(gaze.model, inputs_of(gaze))
    assert_same_scores(together[:, 2], plain[:, 2])
    assert not torch.allclose(together[0, :2].log_softmax(-1), plain[0, :2].log_softmax(-1), atol=1e-2)


def test_neutral_strength_padding_full_forward_and_json(gaze):
    check_neutral(gaze, M3ID(decay=0.0), M3ID(decay=0.0, as_released=True))
    check_padding(gaze, STRONG)
    check_full_forward(gaze, STRONG)
    check_json(M3ID(kappa=0.5, max_weight=None))


def test_it_shares_the_text_only_branch_with_pai(gaze):
    inputs, batches = inputs_of(gaze, slice(0, 1)), []
    handle = gaze.model.lm_head.register_forward_hook(lambda *args: batches.append(len(args[-1])))
    try:
        with gaze.using(STRONG, PAI(gamma=1.5)):
            logits_of(gaze.model, inputs, tokens=2)
    finally:
        handle.remove()
    assert batches == [2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": -0.1}, "decay must be float >= 0, got -0.1"),
        ({"kappa": 0.0}, r"kappa must be float in \(0, 1\], got 0.0"),
        ({"max_weight": -1.0}, "max_weight must be float >= 0 or None, got -1"),
        ({"beta": 2.0}, r"in \[0, 1\], got 2"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        M3ID(**changes)
