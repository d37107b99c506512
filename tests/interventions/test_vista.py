"""VISTA: the turn it gives an MLP output, its vectors, and late logits, against plain forwards with hooks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from decoding_checks import (
    assert_same_scores,
    check_batch,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    inputs_of,
    text_only,
)
from models import logits_of, picture, tiny_llama

import regaze
from regaze.errors import BadParameterError
from regaze.interventions.pai import PAI
from regaze.interventions.vcd import VCD
from regaze.interventions.vista import VISTA, contribution, steer

# The equations ----------------------------------------------------------------------------------------


def test_hand_example_of_the_turn():
    """x = (3, 4), v = (0, 2): x/|x| + .5 v/|v| = (.6, 1.3); against v the step is 1 + .8 times as long."""
    x, v = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[0.0, 2.0]])
    want = 5 * torch.tensor([0.6, 1.3]) / (0.6**2 + 1.3**2) ** 0.5
    torch.testing.assert_close(steer(x, v, 0.5)[0, 0], want)
    want = 5 * torch.tensor([0.6, 0.8 - 0.5 * 1.8])
    torch.testing.assert_close(steer(x, -v, 0.5)[0, 0], F.normalize(want, dim=0) * 5)


def test_the_norm_stays_and_what_has_no_direction_is_left():
    torch.manual_seed(0)
    x, v = torch.randn(2, 5, 16), torch.randn(2, 16)
    torch.testing.assert_close(steer(x, v, 0.7).norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(steer(x, torch.zeros(2, 16), 0.7), x)
    assert not steer(torch.zeros(1, 1, 16), v[:1], 0.7).any()
    low = steer(x.bfloat16(), v.bfloat16(), 0.7)
    assert low.dtype == torch.bfloat16


def test_a_difference_that_is_rounding_has_no_direction():
    seeing = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    blind = seeing + torch.tensor([[0.0, 0.0], [0.0, 5e-7], [0.0, -1e-5]])
    found = contribution(seeing, blind)
    assert not found[:2].any()
    torch.testing.assert_close(found[2], torch.tensor([0.0, 1e-5]), rtol=0.1, atol=0)


# In a model -------------------------------------------------------------------------------------------


def leaving(model, inputs):
    """[layers, D] the residual stream that leaves each layer at the last token of a prompt."""
    seen, handles = [], []
    for layer in model.get_decoder().layers:
        hook = layer.register_forward_hook(
            lambda m, a, out: seen.append((out[0] if isinstance(out, tuple) else out)[0, -1])
        )
        handles.append(hook)
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def by_hand(model, inputs, text, answer, strength, share, window):
    """[T, B, V] of forwards with hooks on the MLPs, each step from the beginning."""
    vectors, handles, late, rows = leaving(model, inputs) - leaving(model, text), [], [], []

    def turn(vector):
        def hook(module, args, out):
            toward = 1 + (-F.cosine_similarity(out, vector.expand_as(out), dim=-1)).clamp_min(0)
            x = out / out.norm(dim=-1, keepdim=True) + strength * toward[..., None] * vector / vector.norm()
            return x / x.norm(dim=-1, keepdim=True) * out.norm(dim=-1, keepdim=True)

        return hook

    for number, layer in enumerate(model.get_decoder().layers):
        if strength:
            handles.append(layer.mlp.register_forward_hook(turn(vectors[number])))
        if number in window:
            handles.append(layer.register_forward_pre_hook(lambda m, args: late.append(args[0][:, -1])))
    for step in range(answer.shape[1]):
        ids = torch.cat([inputs["input_ids"], answer[:, :step]], 1)
        late.clear()
        with torch.no_grad():
            final = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[
                :, -1
            ]
            early = torch.stack([model.lm_head(hidden) for hidden in late]).mean(0)
        rows.append((1 - share) * final + share * early)
    for handle in handles:
        handle.remove()
    return torch.stack(rows)


@pytest.mark.parametrize(
    "vista",
    [
        VISTA(),
        VISTA(strength=0.8, share=0.0),
        VISTA(strength=0.0, share=0.4),
        VISTA(strength=0.3, window=(2, 4)),
    ],
)
def test_every_step_equals_a_forward_with_hooks(model, gaze, vista):
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    with gaze.using(vista):
        got = logits_of(model, inputs, tokens=4)
    window = (5,) if vista.window is None else range(vista.window[0], vista.window[1] + 1)
    text, answer = text_only(gaze, inputs), got.argmax(-1).T
    want = by_hand(model, inputs, text, answer, vista.strength, vista.share, window)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-4)


def test_beams_are_steered_like_their_sample(model, gaze):
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    with gaze.using(VISTA(strength=0.4)):
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
    scores = by_hand(model, inputs, text_only(gaze, inputs), answer, 0.4, 0.3, (5,)).log_softmax(-1)[:, 0]
    total = scores[torch.arange(4), answer[0]].sum()
    assert float(out.sequences_scores[0]) == pytest.approx(float(total), abs=1e-3)


@pytest.mark.parametrize("method", [VISTA(strength=0.4), VISTA(share=0.0)])
def test_batches_and_prompts_without_an_image(gaze, method):
    together = check_batch(gaze, method)
    plain = logits_of(gaze.model, inputs_of(gaze))
    assert not torch.allclose(together[:, :2], plain[:, :2], atol=1e-2)
    with gaze.using(VISTA(strength=0.0, share=method.share)):  # no image, no steering
        augmented = logits_of(gaze.model, inputs_of(gaze))
    torch.testing.assert_close(together[:, 2], augmented[:, 2], rtol=1e-4, atol=1e-4)


def test_neutral_strength_padding_full_forward_and_json(gaze):
    check_neutral(gaze, VISTA(strength=0.0, share=0.0))
    check_padding(gaze, VISTA(strength=0.4))
    check_full_forward(gaze, VISTA(strength=0.4))
    check_json(VISTA(window=(1, 2)))


def test_rows_of_branches_are_steered_by_their_own_prompts(gaze):
    """With a branch that is the prompt itself (weight next to none), scores are those without the branch."""
    inputs = inputs_of(gaze, slice(0, 2))
    vista = VISTA(strength=0.4)
    with gaze.using(vista):
        alone = logits_of(gaze.model, inputs)
    for other in (VCD(alpha=1e-9, beta=0.0), PAI(alpha=0.0, gamma=1.0 + 1e-9, beta=0.0)):
        with gaze.using(vista, other):
            assert_same_scores(logits_of(gaze.model, inputs), alone)
        with gaze.using(other, vista):
            assert_same_scores(logits_of(gaze.model, inputs), alone)


def test_late_logits_need_no_roles():
    model = tiny_llama()
    inputs = {"input_ids": torch.randint(5, 200, (2, 7)), "attention_mask": torch.ones(2, 7).long()}
    with regaze.wrap(model).using(VISTA(strength=0.0)):
        got = logits_of(model, inputs, tokens=1)[0]
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
        want = 0.7 * out.logits + 0.3 * model.lm_head(out.hidden_states[4])
    torch.testing.assert_close(got, want[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": -1.0}, "strength must be float >= 0, got -1"),
        ({"share": 1.2}, r"share must be float in \[0, 1\], got 1.2"),
        ({"window": (3, 1)}, "window must be the first and the last layer"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        VISTA(**changes)


def test_a_window_that_the_model_does_not_have(gaze):
    vista = VISTA(window=(25, 30))
    with pytest.raises(BadParameterError, match=r"the model has layers 0\.\.5"), gaze.using(vista):
        gaze.model(**inputs_of(gaze, slice(0, 1)))
