"""What all methods of contrastive decoding promise: their cut alone, guidance, and prompts of embeddings."""

from __future__ import annotations

import math

import pytest
import torch
from models import llava_processor, logits_of, picture, tiny_llama

import regaze
from regaze import TokenMap
from regaze.errors import InputError
from regaze.interventions import AGLA, DAMRO, ICD, M3ID, PAI, PAINT, VCD, VISTA, AvisC, DoLa

QUESTIONS = ["Is there a dog in the image?", "What?"]


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs([picture(1), picture(2)], QUESTIONS)


@pytest.mark.parametrize("method", [VCD, ICD, DAMRO, AvisC])
def test_without_a_contrast_the_cut_acts_alone(model, gaze, inputs, method):
    """Tokens less likely than beta times the likeliest are excluded, and nothing else changes."""
    plain = logits_of(model, inputs)
    excluded = plain < plain.amax(-1, keepdim=True) + math.log(0.3)
    cut = method(alpha=0.0, beta=0.3)
    assert not cut.is_identity
    with gaze.using(cut):
        assert torch.equal(logits_of(model, inputs), plain.masked_fill(excluded, -torch.inf))
    with gaze.using(method(alpha=1e-12, beta=0.3)):
        assert torch.equal(logits_of(model, inputs).isinf(), excluded)
    assert method(alpha=0.0, beta=0.0).is_identity
    if method is not ICD:  # a prompt without an image is left alone
        text = gaze.inputs([None], ["Hello"])
        plain = logits_of(model, text)
        with gaze.using(cut):
            assert torch.equal(logits_of(model, text), plain)


@pytest.mark.parametrize("method", [DoLa, ICD, VCD])
def test_guidance_is_finite_or_refused(model, gaze, inputs, method):
    """The guidance of transformers subtracts scores; of excluded tokens that would be nan."""
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with gaze.using(method(beta=0.1)):
        with pytest.raises(InputError, match="guidance_scale"):
            model.generate(**inputs, **options, guidance_scale=1.5)
        model.generate(**inputs, **options, guidance_scale=1.0)
        with torch.no_grad():
            assert not model(**inputs).logits.isnan().any()
    with gaze.using(method(beta=0.0)):
        out = model.generate(
            **inputs, **options, guidance_scale=1.5, output_scores=True, return_dict_in_generate=True
        )
    assert torch.stack(out.scores).isfinite().all()


@pytest.mark.parametrize(
    "method",
    [
        PAI(gamma=1.5),
        M3ID(),
        PAINT(gamma=1.5),
        PAINT(gamma=1.0),
        VISTA(),
        ICD(),
        AGLA(relevance=lambda image, text: (None, 0.0)),
        VCD(),
        DAMRO(),
        AvisC(),
    ],
    ids=lambda method: method.name,
)
def test_embeddings_instead_of_ids_are_refused(model, gaze, inputs, method):
    tokens = gaze.tokens(inputs)
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    with gaze.using(method, tokens=tokens), pytest.raises(InputError):
        model(**given)
    with gaze.using(method), pytest.raises(InputError, match="inputs_embeds"):
        model(**given)


def test_embeddings_of_a_text_model_are_refused_by_icd():
    text = tiny_llama()
    gaze = regaze.wrap(text, llava_processor().tokenizer)
    embeds = text.get_input_embeddings()(torch.randint(5, 40, (1, 8))).detach()
    tokens = TokenMap.from_roles(torch.full((1, 8), 5))
    with gaze.using(ICD(), tokens=tokens), pytest.raises(InputError, match="pass input_ids"):
        text(inputs_embeds=embeds)
