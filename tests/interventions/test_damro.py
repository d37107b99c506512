"""DAMRO: the patches it keeps, and scores against forwards of a really shorter prompt."""

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
    embedded,
    inputs_of,
    logits_from,
    plain_logits,
    scores,
)
from models import context_for, llava_processor, logits_of, picture, tiny_llava
from transformers import CLIPVisionModel

from regaze import TokenMap
from regaze.errors import BadParameterError, InputError
from regaze.interventions.damro import DAMRO, most_attended
from regaze.toolkit.model.vision import patches_on_tokens
from regaze.toolkit.prompts.token_map import PromptTokens, View


@pytest.fixture(scope="module")
def model():
    """A random LLaVA whose class token prefers some patches clearly."""
    model = tiny_llava(seed=4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "vision_tower" in name and "q_proj.weight" in name:
                weight.mul_(30.0)
    return model


def class_attention(model, pixels, as_released):
    """[N, patches] of the last block, from the tower's attention maps or its un-split queries and keys."""
    tower = model.model.vision_tower
    eager = CLIPVisionModel._from_config(tower.config, attn_implementation="eager").eval()
    eager.load_state_dict(tower.state_dict())
    seen = {}
    for name, module in eager.named_modules():
        if name.endswith(f"layers.{tower.config.num_hidden_layers - 1}.self_attn.q_proj"):
            module.register_forward_hook(lambda *args: seen.update(q=args[-1]))
        if name.endswith(f"layers.{tower.config.num_hidden_layers - 1}.self_attn.k_proj"):
            module.register_forward_hook(lambda *args: seen.update(k=args[-1]))
    with torch.no_grad():
        attention = eager(pixels, output_attentions=True).attentions[-1].mean(1)
    if as_released:
        attention = (seen["q"] @ seen["k"].mT * seen["q"].shape[-1] ** -0.5).softmax(-1)
    return attention[:, 0, 1:]


@pytest.mark.parametrize("as_released", [False, True])
def test_every_step_contrasts_with_a_prompt_of_ten_image_tokens(model, gaze, as_released):
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    answer, got = answer_of(gaze, inputs, DAMRO(as_released=as_released))
    top = class_attention(model, inputs["pixel_values"], as_released).topk(10).indices[0]
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    kept = torch.ones(inputs["input_ids"].shape[1] + 4, dtype=torch.bool)
    kept[image] = False
    kept[image[top]] = True
    negative = []
    for step in range(4):
        embeds = embedded(model, inputs, answer[:, :step])[0]
        negative.append(logits_from(model, embeds[kept[: len(embeds)]])[None])
    want = scores(plain_logits(model, inputs, answer), torch.stack(negative), 2.0, 0.1)
    assert_same_scores(got, want, tolerance=5e-4)


def test_the_release_chooses_other_patches(model):
    pixels = llava_processor().image_processor(picture(1), return_tensors="pt")["pixel_values"]
    paper, released = (class_attention(model, pixels, kind)[0].topk(10).indices for kind in (False, True))
    assert set(paper.tolist()) != set(released.tolist())


def test_cells_of_several_images_are_those_of_their_own_sample():
    views = (View((2, 2), 0), View((2, 2), 1))
    one = PromptTokens((2, 3, 3, 3, 3, 5), (-1, 0, 0, 0, 0, -1), (-1, 0, 1, 2, 3, -1), views[:1])
    two = PromptTokens((3,) * 8 + (5,), (0,) * 4 + (1,) * 4 + (-1,), (3, 2, 1, 0, 0, 1, 2, 3, -1), views)
    visible = torch.ones(2, 9, dtype=torch.bool)
    visible[0, :3] = False
    context = context_for([[0] * 9] * 2)
    context._tokens = TokenMap.from_samples([one, two], visible)
    attention = torch.tensor([[3.0, 0.0, 1.0, 2.0], [9.0, 8.0, 0.0, 0.0], [0.0, 1.0, 2.0, 4.0]])
    top = most_attended(attention, 2)
    assert top.nonzero()[:, 1].view(3, 2).tolist() == [[0, 3], [0, 1], [2, 3]]
    chosen = patches_on_tokens(top.float(), context.tokens, 2).bool()
    assert chosen.nonzero().tolist() == [[0, 4], [0, 7], [1, 2], [1, 3], [1, 6], [1, 7]]
    with pytest.raises(InputError, match=r"show 3 images of \[4\] cells, but the vision tower saw 2"):
        patches_on_tokens(top[:2].float(), context.tokens, 2)
    with pytest.raises(InputError, match=r"of \[4\] cells, but the vision tower saw 3 of 16 patches"):
        patches_on_tokens(torch.zeros(3, 16), context.tokens, 2)


@pytest.mark.parametrize("method", [DAMRO(), DAMRO(kept=3, alpha=0.5, as_released=True)])
def test_batches_and_prompts_without_an_image(gaze, method):
    together = check_batch(gaze, method)
    plain = logits_of(gaze.model, inputs_of(gaze))
    assert_same_scores(together[:, 2], plain[:, 2])
    assert together[:, :2].isinf().any()


def test_neutral_strength_padding_full_forward_and_json(gaze):
    check_neutral(gaze, DAMRO(alpha=0.0, beta=0.0))
    check_padding(gaze, DAMRO())
    check_full_forward(gaze, DAMRO())
    check_json(DAMRO(kept=4, as_released=True))


def test_keeping_every_token_contrasts_with_nothing(gaze):
    inputs = inputs_of(gaze, slice(0, 2))
    plain = logits_of(gaze.model, inputs)
    with gaze.using(DAMRO(kept=1000, beta=0.0)):
        assert_same_scores(logits_of(gaze.model, inputs), plain, tolerance=1e-3)


def test_what_it_needs(gaze):
    with pytest.raises(BadParameterError, match="kept must be int > 0, got 0"):
        DAMRO(kept=0)
    inputs = dict(inputs_of(gaze, slice(0, 1)))
    inputs.pop("pixel_values")
    with pytest.raises(InputError, match="DAMRO reads `pixel_values`"), gaze.using(DAMRO()):
        gaze.model(**inputs)
