"""VHR: the heads it chooses, by hand and by hooks of the test's own, and its promises in a model."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_choices,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    check_spares_text,
    inputs_of,
)
from models import logits_of, picture, tiny_llava

from regaze.errors import BadParameterError
from regaze.interventions.vhr import VHR, vision_aware

SEEING = torch.tensor([[1, 0], [0, 2], [1, 1], [2, 0], [0, 1], [0, 0.5]])[None]
BLIND = torch.tensor([[1, 0.5], [0, 0], [1, 0], [0.5, 0], [0, 0.9], [6, 0.5]])[None]


def test_hand_example():
    """Head 5 surges without the image; counted, it would change the median and the choice."""
    assert vision_aware(SEEING, BLIND)[0].nonzero().flatten().tolist() == [1, 2, 3]
    distance = (SEEING - BLIND).norm(dim=-1)
    assert (distance > distance.median(1).values)[0].nonzero().flatten().tolist() == [1, 3, 5]


def test_invariants():
    torch.manual_seed(0)
    seeing, blind = torch.randn(2, 3, 7, 4)
    chosen = vision_aware(seeing, blind)
    assert (chosen.sum(1) <= 3).all()
    assert torch.equal(vision_aware(3 * seeing, 3 * blind), chosen)
    order = torch.randperm(7)
    assert torch.equal(vision_aware(seeing[:, order], blind[:, order]), chosen[:, order])
    assert not vision_aware(seeing, seeing).any()


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(32, (1, *range(18, 32))), (6, (1, 3, 4, 5)), (1, (0,))],
)
def test_the_papers_layers(depth, layers):
    assert VHR().layers_of(depth) == layers


# In a model -------------------------------------------------------------------------------------------


def chosen_by_hooks(inputs, alpha, layers, amplified=True):
    """Gains [Hq] by layer: two rows, with the image and without, amplified on the way or not."""
    model, gains = tiny_llava(), {}
    image = inputs["input_ids"][0] == model.config.image_token_id
    mask = torch.stack([torch.ones_like(image), ~image]).long()

    def hook_of(layer):
        def hook(module, args):
            heads = args[0].unflatten(-1, (6, -1))
            chosen = vision_aware(heads[:1, -1], heads[1:, -1])
            gains[layer] = torch.where(chosen[0], alpha, 1.0)
            return ((heads * gains[layer][:, None]).flatten(2),) if amplified else None

        return hook

    for layer in layers:
        model.model.language_model.layers[layer].self_attn.o_proj.register_forward_pre_hook(hook_of(layer))
    with torch.no_grad():
        model(
            input_ids=inputs["input_ids"].repeat(2, 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            pixel_values=inputs["pixel_values"].repeat(2, 1, 1, 1),
        )
    return gains


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(
    ("alpha", "layers", "measure"),
    [(2.0, None, "amplified"), (3.0, (0, 2, 3), "amplified"), (0.5, (4,), "amplified"), (8.0, None, "plain")],
)
def test_every_step_has_the_heads_that_hooks_choose(model, gaze, images, alpha, layers, measure):
    inputs = gaze.inputs([[picture(n) for n in range(images)]], ["Is there a dog in the image?"])
    method = VHR(alpha=alpha, layers=layers, measure=measure)
    gains = chosen_by_hooks(inputs, alpha, method.layers_of(6), measure == "amplified")
    if measure == "plain":
        behind = chosen_by_hooks(inputs, alpha, method.layers_of(6))
        assert any(not torch.equal(gains[layer], behind[layer]) for layer in gains)
    other = tiny_llava()
    for layer, gain in gains.items():
        other.model.language_model.layers[layer].self_attn.o_proj.register_forward_pre_hook(
            lambda module, args, gain=gain: ((args[0].unflatten(-1, (6, -1)) * gain[:, None]).flatten(2),)
        )
    with gaze.using(method):
        got = logits_of(model, inputs)
    assert_same_scores(got, logits_of(other, inputs), tolerance=5e-4)
    assert all(int((gain != 1).sum()) == 3 for gain in gains.values())


def test_batches_padding_full_forward_choices_and_json(gaze):
    method = VHR(alpha=3.0)
    check_spares_text(gaze, method)
    check_padding(gaze, method)
    check_full_forward(gaze, method)
    check_choices(gaze, method)
    check_neutral(gaze, VHR(alpha=1.0))
    check_json(VHR(alpha=0.5, layers=(1, 3)))


def test_layers_that_are_not_there(gaze):
    with pytest.raises(BadParameterError, match="layer 6 does not exist"), gaze.using(VHR(layers=(2, 6))):
        gaze.model(**inputs_of(gaze, slice(0, 1)))


def test_bad_parameters():
    with pytest.raises(BadParameterError, match="alpha must be float >= 0"):
        VHR(alpha=-1.0)
