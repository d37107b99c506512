"""VAF against its formula on recorded scores, and what must never happen to it."""

from __future__ import annotations

import json

import pytest
import torch
from models import logits_of, picture, tiny_llama

import regaze
from regaze import Role, TokenMap
from regaze.errors import BadParameterError
from regaze.interventions.vaf import VAF

QUESTIONS = ["Is there a red dog in the image?", "Please describe this image in detail.", "What?"]
IMAGES = [picture(1), picture(2), [picture(3), picture(4)]]


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def vaf(**changes) -> VAF:
    return VAF(**{"enhance": 1.6, "suppress": 0.5, "layers": (1, 3), **changes})


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs(IMAGES, QUESTIONS)


def test_neutral_strength_is_bit_identical(model, gaze, inputs):
    plain = logits_of(model, inputs)
    with gaze.using(VAF(enhance=1.0, suppress=1.0)):
        assert torch.equal(plain, logits_of(model, inputs))
    for part in ({"suppress": 1.0}, {"enhance": 1.0}):
        with gaze.using(vaf(**part)):
            assert not torch.allclose(logits_of(model, inputs), plain, atol=1e-2)


def test_scores_are_multiplied_before_the_softmax(model, gaze, inputs):
    """In every row after the image; rows before it, and the image's own, stay."""
    tokens = gaze.tokens(inputs)
    gain = 1 + 0.6 * tokens.mask(Role.IMAGE) - 0.5 * tokens.mask(Role.SYSTEM)
    wanted = {"slices": "all", "rows": "all", "layers": [2], "lse": True}
    with gaze.recording(**wanted) as plain:
        model(**inputs)
    with gaze.using(vaf(layers=(2, 2))), gaze.recording(**wanted, edited=True) as edited:
        model(**inputs)
    weights = plain[0].slices[0]  # [B, heads, L, L]
    scores = (weights.log() + plain[0].lse[0][..., None]) * gain[:, None, None]
    expected = torch.where(weights > 0, scores, -torch.inf).softmax(-1)
    rows = tokens.after_image()[:, None, :, None]
    real = (~tokens.mask(Role.PAD))[:, None, :, None]
    close(edited[0].slices[0] * (rows & real), expected.nan_to_num() * (rows & real))
    assert torch.equal(edited[0].slices[0] * (~rows & real), weights * (~rows & real))


def test_it_edits_the_layers_it_should(model, gaze, inputs):
    for method, layers in ((vaf(layers=(0, 2)), {0, 1, 2}), (VAF(), {2})):
        with gaze.using(method), gaze.recording(slices="all", rows="text") as plain:
            model(**inputs)
        with gaze.using(method), gaze.recording(slices="all", rows="text", edited=True) as edited:
            model(**inputs)
        difference = (plain[0].slices - edited[0].slices).abs().amax((1, 2, 3, 4))
        assert {layer for layer in range(6) if difference[layer] > 1e-6} == layers


def test_batch_equals_singles_and_no_sample_remembers_another(model, gaze, inputs):
    with gaze.using(vaf()):
        together = logits_of(model, inputs)
        for row, (image, question) in enumerate(zip(IMAGES, QUESTIONS, strict=True)):
            alone = logits_of(model, gaze.inputs([image], [question]))
            close(together[:, row], alone[:, 0])
    with gaze.using(vaf()):
        assert torch.equal(alone, logits_of(model, gaze.inputs(IMAGES[2:], QUESTIONS[2:])))


def test_prefill_and_decode_equal_one_full_forward(model, gaze):
    inputs = gaze.inputs(IMAGES[2:], QUESTIONS[2:])
    with gaze.using(vaf()):
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)[:, :-1]
        step_by_step = logits_of(model, inputs, 5)[:, 0]
        full = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -5:]
    close(step_by_step, full)


def test_the_place_of_the_padding_does_not_matter(model, gaze, inputs):
    with gaze.using(vaf()):
        ids, attended, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
        left = model(**inputs, position_ids=(attended.cumsum(1) - 1).clamp_min(0)).logits[:, -1]
        shift = (attended == 0).sum(1).tolist()
        ids, attended = (
            torch.stack([x.roll(-s) for x, s in zip(t, shift, strict=True)]) for t in (ids, attended)
        )
        logits = model(input_ids=ids, attention_mask=attended, pixel_values=pixels).logits
    close(left, logits[torch.arange(3), attended.sum(1) - 1])


def test_a_prompt_without_an_image_beside_one_with(model, gaze):
    questions = ["Is there a dog?", "Is there a red dog here?"]
    plain = logits_of(model, gaze.inputs([None], questions[:1]))
    with gaze.using(vaf()):
        assert torch.equal(plain, logits_of(model, gaze.inputs([None], questions[:1])))
        both = logits_of(model, gaze.inputs([None, picture(1)], questions))
    close(both[:, 0], plain[:, 0])


def test_repeated_keys_and_values_change_nothing():
    few, many = tiny_llama(), tiny_llama(num_key_value_heads=6)
    weights = few.state_dict()
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = tensor.unflatten(0, (2, -1)).repeat_interleave(3, 0).flatten(0, 1)
    many.load_state_dict(weights)
    ids = torch.randint(10, 90, (1, 20))
    roles = torch.tensor([[Role.SYSTEM] * 2 + [Role.IMAGE] * 9 + [Role.QUERY] * 6 + [Role.TAIL] * 3])
    outputs = []
    for text_model in (few, many):
        with regaze.wrap(text_model).using(vaf(), tokens=TokenMap.from_roles(roles)):
            outputs.append(logits_of(text_model, {"input_ids": ids}))
    close(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], logits_of(few, {"input_ids": ids}), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enhance": -1.0}, "enhance must be float >= 0, got -1.*factor of the scores"),
        ({"suppress": float("nan")}, "finite number"),
        ({"layers": (3, 1)}, "layers must be the first and the last layer"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        VAF(**changes)


def test_layers_that_do_not_exist(model, gaze, inputs):
    message = r"layers 2\.\.6 do not exist: the model has layers 0\.\.5"
    with pytest.raises(BadParameterError, match=message), gaze.using(vaf(layers=(2, 6))):
        model(**inputs)


def test_json_round_trip():
    assert VAF.from_dict(json.loads(json.dumps(vaf().to_dict()))) == vaf()
