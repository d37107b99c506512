"""AvisC: which tokens are blind, and scores against forwards with all others blanked."""

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
from models import logits_of, picture, tiny_llava

from regaze import HeadKnockout
from regaze.errors import BadParameterError
from regaze.interventions.avisc import AvisC, blind_tokens


def by_hand(attention, gamma, deviations):
    """The same in loops, for one sample: attention [layers, n] -> the numbers of the blind tokens."""
    totals = attention.sum(1)
    order = totals.argsort(descending=True).tolist()
    chosen, covered = [], 0.0
    for layer in order:
        if chosen and covered >= gamma * float(totals.sum()):
            break
        chosen.append(layer)
        covered += float(totals[layer])
    mean = attention[chosen].mean(0)
    least = float(mean.mean() + deviations * mean.std())
    return [j for j, value in enumerate(mean.tolist()) if value >= least], chosen


def test_hand_example():
    """Shares .5, .3, .2: gamma .5 is reached by one layer, .6 needs two, .9 all three."""
    attention = torch.tensor([[0.05, 0.05, 0.05, 0.15], [0.10, 0.10, 0.10, 0.45], [0.05, 0.3, 0.05, 0.05]])
    assert attention.sum(1).tolist() == pytest.approx([0.3, 0.75, 0.45])
    everything = torch.ones(1, 4, dtype=torch.bool)
    for gamma, layers in ((0.5, [1]), (0.6, [1, 2]), (0.85, [1, 2, 0])):
        blind, chosen = by_hand(attention, gamma, 0.5)
        assert chosen == layers
        got = blind_tokens(attention[:, None], everything, gamma, 0.5)
        assert got[0].nonzero().flatten().tolist() == blind
    assert by_hand(attention, 0.5, 0.5)[0] == [3]


def test_samples_are_judged_by_themselves_however_many_tokens_they_have():
    torch.manual_seed(0)
    attention = torch.rand(6, 3, 9) ** 3
    image = torch.ones(3, 9, dtype=torch.bool)
    image[1, 5:] = False
    image[2] = False
    attention = attention * image
    got = blind_tokens(attention, image, 0.4, 0.8)
    assert got[0].nonzero().flatten().tolist() == by_hand(attention[:, 0], 0.4, 0.8)[0]
    assert got[1].nonzero().flatten().tolist() == by_hand(attention[:, 1, :5], 0.4, 0.8)[0]
    assert not got[2].any()
    one = torch.tensor([[[0.3]]])
    assert blind_tokens(one, one > 0, 0.5, 1.0).all()  # no deviation from itself


# In a model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_every_step_contrasts_with_blanked_embeddings(model, gaze, system):
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"], system=system)
    answer, got = answer_of(gaze, inputs, AvisC())
    eager = tiny_llava()
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        maps = torch.stack(eager(**inputs, output_attentions=True).attentions)[:, 0].mean(1)
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    blind, _ = by_hand(maps[:, -1, image], 0.5, 1.0)
    assert 0 < len(blind) < 32
    negative = []
    for step in range(4):
        embeds = embedded(model, inputs, answer[:, :step])[0].clone()
        blank = [int(column) for number, column in enumerate(image) if number not in blind]
        embeds[blank] = 0.0
        negative.append(logits_from(model, embeds)[None])
    want = scores(plain_logits(model, inputs, answer), torch.stack(negative), 1.0, 0.1)
    assert_same_scores(got, want)


@pytest.mark.parametrize("method", [AvisC(), AvisC(gamma=0.9, deviations=-0.5, alpha=2.5)])
def test_batches_and_prompts_without_an_image(gaze, method):
    together = check_batch(gaze, method)
    plain = logits_of(gaze.model, inputs_of(gaze))
    assert_same_scores(together[:, 2], plain[:, 2])
    assert together[:, :2].isinf().any()


def test_neutral_strength_padding_full_forward_and_json(gaze):
    check_neutral(gaze, AvisC(alpha=0.0, beta=0.0))
    check_padding(gaze, AvisC())
    check_full_forward(gaze, AvisC())
    check_json(AvisC(gamma=0.4, deviations=2.0))


def test_it_measures_the_unedited_model(gaze):
    """What other interventions do is left out of the measurement, and acts on both contexts."""
    inputs, avisc = inputs_of(gaze, slice(0, 1)), AvisC(beta=0.0)
    knockout = HeadKnockout(heads=tuple((2, head) for head in range(6)))
    with gaze.using(avisc, knockout):
        together = logits_of(gaze.model, inputs)
    with gaze.using(knockout, avisc):
        assert_same_scores(together, logits_of(gaze.model, inputs))
    weight = gaze.model.model.language_model.layers[2].self_attn.o_proj.weight
    kept = weight.detach().clone()
    try:
        weight.data.zero_()
        with gaze.using(avisc):
            removed = logits_of(gaze.model, inputs)
    finally:
        weight.data.copy_(kept)
    assert not torch.allclose(together, removed, atol=1e-3)  # there the measurement saw the removal, too


def test_a_static_cache_gives_the_same(gaze):
    inputs = inputs_of(gaze, slice(0, 2))
    with gaze.using(AvisC()):
        dynamic = logits_of(gaze.model, inputs, tokens=3)
        static = gaze.model.generate(
            **inputs,
            max_new_tokens=3,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
            cache_implementation="static",
        )
    assert_same_scores(torch.stack(static.logits), dynamic)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0.0}, r"gamma must be float in \(0, 1\], got 0"),
        ({"alpha": -1.0}, "alpha must be float >= 0, got -1"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        AvisC(**changes)
