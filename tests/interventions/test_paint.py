"""PAINT against the paper's hand examples, the authors' outputs, and what must never happen."""

from __future__ import annotations

import json

import pytest
import torch
from models import logits_of, picture
from safetensors.torch import load_file

import regaze
from regaze import HeadKnockout, Role
from regaze.errors import BadParameterError, InputError
from regaze.interventions.paint.head_weights import head_sensitivity
from regaze.interventions.paint.method import PAINT, top_mask, upper_fence
from regaze.kernels import AttentionEdit, RowSelection, attend
from regaze.toolkit.model.vision import class_attention, patches_on_tokens, received_attention


def close(actual, expected, rtol=1e-5, atol=2e-6):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# Which tokens -----------------------------------------------------------------------------------------


def test_hand_example_of_the_fence():
    values = torch.tensor([[0.01, 0.02, 0.02, 0.03, 0.03, 0.03, 0.04, 0.04, 0.05, 0.40]])
    close(upper_fence(values).float(), torch.tensor([[0.06625]]))
    local, summary = PAINT(local_ratio=0.2).choose(values, values)
    assert summary.nonzero().tolist() == [[0, 9]]
    assert local.nonzero().tolist() == [[0, 8]]  # 8 and 9 are local, but 9 is a summary token


def golden(goldens, name: str):
    folder = goldens / "methods" / "paint"
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def test_golden_token_selection(goldens):
    spec, tensors = golden(goldens, "token_selection")
    for name, case in spec["cases"].items():
        attention = tensors[f"{name}/in/cls_attn"].sum(2)[..., 1:]  # [layers, B, patches]
        close(attention[0, 0], tensors[f"{name}/out/first_layer_sum"])
        close(attention[-2, 0], tensors[f"{name}/out/penultimate_sum"])
        method = PAINT(local_ratio=case["params"]["local_ratio"], as_released=case["kind"] == "as_released")
        local, summary = method.choose(attention[0], attention[-2])
        assert local[0].nonzero().flatten().tolist() == tensors[f"{name}/out/local"].tolist()
        assert summary[0].nonzero().flatten().tolist() == tensors[f"{name}/out/summary"].tolist()
        fence = upper_fence(attention[-2])[0, 0]
        assert float(fence) == pytest.approx(float(tensors[f"{name}/out/fence"]), abs=2e-6)
    assert len(spec["cases"]) >= 3


def test_the_released_float_ratio_can_lose_a_summary_token():
    """Of 49 patches with 8 outliers: 49 (8 / 49) is just below 8."""
    values = torch.linspace(0, 1e-3, 49)[None].clone()
    values[0, :8] += 1.0
    for as_released, expected in ((False, 8), (True, 7)):
        summary = PAINT(as_released=as_released).choose(values, values)[1]
        assert int(summary.sum()) == expected


def test_ties_go_to_the_first():
    values = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    assert top_mask(values, torch.tensor([[2], [3]])).tolist() == [
        [False, True, True, False, False],
        [True, True, True, False, False],
    ]


# The scores -------------------------------------------------------------------------------------------


def test_hand_example_of_the_scores():
    slope = torch.tensor([[[0.0, 0.7, 0.4, 0.0]]])
    scores = torch.tensor([1.0, -2.0, 0.5, 0.0])
    q, k = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 4, 4)
    q[..., 0], k[0, 0, :, 0] = 1.0, scores
    edit = AttentionEdit(score_slope=slope)
    out = attend(q, k, torch.eye(4)[None, None], edit, scaling=1.0)[0].flatten()
    close(out, torch.tensor([0.4328, 0.0874, 0.3206, 0.1592]), rtol=0, atol=6e-5)


def test_golden_score_boost(goldens):
    spec, tensors = golden(goldens, "score_boost")
    for name, case in spec["cases"].items():
        params = case["params"]
        q, k, v, additive = (tensors[f"{name}/in/{part}"] for part in ("q", "k", "v", "mask"))
        slope = torch.zeros(1, 1, params["k_len"])
        slope[..., params["image_start"] + tensors[f"{name}/in/local"]] = params["alpha"]
        slope[..., params["image_start"] + tensors[f"{name}/in/summary"]] = params["beta"]
        edit = AttentionEdit(score_slope=slope, rows=RowSelection(torch.tensor([params["q_len"] - 1])))
        out = attend(q, k, v, edit, mask=additive)[0].transpose(1, 2)
        close(out, tensors[f"{name}/out/out_after"])
        identity = torch.eye(params["k_len"]).expand(*k.shape[:2], -1, -1)
        close(attend(q, k, identity, edit, mask=additive)[0], tensors[f"{name}/out/attn_after"])
    assert len(spec["cases"]) >= 3


# In a model -------------------------------------------------------------------------------------------

QUESTIONS = ["Is there a red dog in the image?", "Please describe this image in detail.", "What?"]
IMAGES = [picture(1), picture(2), [picture(3), picture(4)]]
SETTINGS = [{"gamma": 1.0}, {"gamma": 1.4}, {"gamma": 1.0, "spatial_ratio": 0.1, "layers": (1, 4)}]


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs(IMAGES, QUESTIONS)


@pytest.fixture(scope="module", autouse=True)
def peaked(model):
    """A vision tower whose class token prefers some patches; a random one hardly does."""
    with torch.no_grad():
        for block in model.model.vision_tower.encoder.layers:
            block.self_attn.q_proj.weight.mul_(8)
            block.self_attn.k_proj.weight.mul_(8)


def test_neutral_strength_is_bit_identical(model, gaze, inputs):
    plain = logits_of(model, inputs)
    with gaze.using(PAINT(alpha=0.0, beta=0.0, gamma=1.0)):
        assert torch.equal(plain, logits_of(model, inputs))
    for part in ({"beta": 0.0, "gamma": 1.0}, {"alpha": 0.0, "gamma": 1.0}, {"alpha": 0.0, "beta": 0.0}):
        with gaze.using(PAINT(**part)):
            assert not torch.allclose(logits_of(model, inputs), plain, atol=1e-3)


@pytest.mark.parametrize("setting", SETTINGS)
def test_batch_equals_singles_and_no_sample_remembers_another(model, gaze, inputs, setting):
    with gaze.using(PAINT(**setting)):
        together = logits_of(model, inputs)
        for row, (image, question) in enumerate(zip(IMAGES, QUESTIONS, strict=True)):
            alone = logits_of(model, gaze.inputs([image], [question]))
            close(together[:, row], alone[:, 0], rtol=0, atol=2e-5)
    with gaze.using(PAINT(**setting)):
        assert torch.equal(alone, logits_of(model, gaze.inputs(IMAGES[2:], QUESTIONS[2:])))


def test_the_chosen_patches_of_every_image_are_boosted(model, gaze, inputs):
    """Recorded scores of the last row, s = log a + lse, against s + slope |s| by hand."""
    pixels, tokens = inputs["pixel_values"], gaze.tokens(inputs)
    looks = class_attention(model, pixels, (0, -2)).sum(2)
    slopes = torch.zeros(4, 64)
    for image in range(4):
        local = looks[0, image].topk(16).indices.tolist()
        low, high = torch.quantile(looks[1, image], torch.tensor([0.25, 0.75])).tolist()
        summary = (looks[1, image] > high + 1.5 * (high - low)).nonzero().flatten().tolist()
        slopes[image, local] = 0.7
        slopes[image, summary] = 0.4
    expected = torch.zeros(tokens.roles.shape)
    for row, image, of_row in ((0, 0, 0), (1, 1, 0), (2, 2, 0), (2, 3, 1)):
        expected[row, tokens.image_cells(row, of_row)] = slopes[image]
    assert torch.equal(patches_on_tokens(slopes, tokens, 3), expected)
    method = PAINT(gamma=1.0, layers=(2, 2))
    wanted = {"slices": "all", "rows": "last", "layers": [2], "lse": True}
    with gaze.recording(**wanted) as plain:
        model(**inputs)
    with gaze.using(method), gaze.recording(**wanted, edited=True) as edited:
        model(**inputs)
    weights = plain[0].slices[0]  # [B, heads, 1, L]
    scores = weights.log() + plain[0].lse[0][..., None]
    scores = torch.where(weights > 0, scores + expected[:, None, None] * scores.abs(), -torch.inf)
    close(edited[0].slices[0], scores.softmax(-1), rtol=1e-4, atol=1e-5)


def test_prefill_and_decode_equal_one_full_forward(model, gaze):
    inputs = gaze.inputs(IMAGES[:1], QUESTIONS[:1])
    with gaze.using(PAINT(gamma=1.3)):
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)[:, :-1]
        step_by_step = logits_of(model, inputs, 4)[:, 0]
        full = model(
            input_ids=ids, pixel_values=inputs["pixel_values"], attention_mask=torch.ones_like(ids)
        ).logits[0, -4:]
    close(step_by_step, full, rtol=0, atol=5e-5)


def test_guidance_is_the_formula_over_a_text_only_forward(model, gaze):
    inputs = gaze.inputs(IMAGES[:1], QUESTIONS[:1])
    with gaze.using(PAINT(gamma=1.0)):
        edited = model(**inputs).logits[:, -1].log_softmax(-1)
    image = gaze.tokens(inputs).mask(Role.IMAGE)
    text = model(input_ids=inputs["input_ids"][~image][None]).logits[:, -1].log_softmax(-1)
    expected = 1.4 * (edited - text) + text
    expected[edited < edited.amax() + torch.log(torch.tensor(0.1))] = -torch.inf
    with gaze.using(PAINT(gamma=1.4)):
        close(model(**inputs).logits[:, -1], expected, rtol=1e-4, atol=1e-4)


def test_as_released_the_first_token_is_not_edited_under_guidance(model, gaze, inputs):
    plain = logits_of(model, inputs)
    with gaze.using(PAINT(gamma=1.0 + 1e-9, cut=0.0, as_released=True)):
        released = logits_of(model, inputs)
    with gaze.using(PAINT(gamma=1.0, as_released=True)):
        unguided = logits_of(model, inputs)
    close(released[0], plain[0].log_softmax(-1), rtol=0, atol=1e-4)
    assert not torch.allclose(released[1], plain[1].log_softmax(-1), atol=1e-3)
    assert not torch.allclose(unguided[0], plain[0], atol=1e-3)


def test_a_prompt_without_an_image_beside_one_with(model, gaze):
    questions = ["Is there a dog?", "Is there a red dog here?"]
    plain = logits_of(model, gaze.inputs([None], questions[:1]))
    with gaze.using(PAINT(gamma=1.4)):
        assert torch.equal(plain, logits_of(model, gaze.inputs([None], questions[:1])))
        both = logits_of(model, gaze.inputs([None, picture(1)], questions))
    close(both[:, 0].log_softmax(-1), plain[:, 0].log_softmax(-1), rtol=0, atol=5e-5)


def test_the_place_of_the_padding_does_not_matter(model, gaze, inputs):
    with gaze.using(PAINT(gamma=1.0)):
        ids, attended, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
        left = model(**inputs, position_ids=(attended.cumsum(1) - 1).clamp_min(0)).logits[:, -1]
        shift = (attended == 0).sum(1).tolist()
        ids, attended = (
            torch.stack([x.roll(-s) for x, s in zip(t, shift, strict=True)]) for t in (ids, attended)
        )
        logits = model(input_ids=ids, attention_mask=attended, pixel_values=pixels).logits
    close(left, logits[torch.arange(3), attended.sum(1) - 1], rtol=0, atol=2e-5)


def test_beams_agree_with_one_sample_at_a_time(model, gaze):
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    with gaze.using(PAINT()):
        together = model.generate(**gaze.inputs(IMAGES[:2], QUESTIONS[:2]), **options)[:, -4:]
        for row in range(2):
            alone = model.generate(**gaze.inputs(IMAGES[row : row + 1], QUESTIONS[row : row + 1]), **options)
            assert torch.equal(together[row], alone[0, -4:])


def test_spatial_tokens_are_those_that_receive_most(model, inputs):
    pixels = inputs["pixel_values"]
    received = received_attention(model, pixels, (0,))[0].sum(1)
    looks = class_attention(model, pixels, (0, -2)).sum(2)
    local, summary = PAINT(local_ratio=0.0, spatial_ratio=0.1).choose(*looks, received)
    for image in range(4):
        expected = set(received[image].topk(6).indices.tolist()) - set(
            summary[image].nonzero().flatten().tolist()
        )
        assert set(local[image].nonzero().flatten().tolist()) == expected


def test_head_weights(model, gaze, inputs):
    weights = head_sensitivity(gaze, IMAGES, QUESTIONS, batch_size=2)
    assert (len(weights), {len(row) for row in weights}) == (6, {6})
    assert all(0.0 <= value <= 2.0 for row in weights for value in row)
    close(torch.tensor(weights).mean(1), torch.ones(6), rtol=0, atol=0.1)
    with gaze.recording(slices="image", rows="last", masses=False) as record:
        model(**gaze.inputs(IMAGES[:1], QUESTIONS[:1]))
    mass = record[0].slices[:, 0, :, 0].sum(-1)
    alone = torch.tensor(head_sensitivity(gaze, IMAGES[:1], QUESTIONS[:1]))
    close(alone, (mass / mass.mean(1, keepdim=True)).clamp(0, 2), rtol=1e-4, atol=1e-5)
    plain = logits_of(model, inputs)
    with gaze.using(PAINT(gamma=1.0)):
        edited = logits_of(model, inputs)
    for value, expected in ((0.0, plain), (1.0, edited)):
        same = tuple((value,) * 6 for _ in range(6))
        with gaze.using(PAINT(gamma=1.0, head_weights=same)):
            close(logits_of(model, inputs), expected, rtol=0, atol=2e-5)
    one_head = tuple(tuple(float(head == 2) for head in range(6)) for _ in range(6))
    only = PAINT(gamma=1.0, head_weights=one_head)
    others = HeadKnockout(heads=tuple((layer, 2) for layer in range(6)))
    with gaze.using(others):
        removed = logits_of(model, inputs)
    with gaze.using(only, others):  # the only head that is boosted is gone
        close(logits_of(model, inputs), removed, rtol=0, atol=2e-5)


def test_inputs_that_do_not_fit(model, gaze, inputs):
    tokens = regaze.TokenMap.from_roles(gaze.tokens(inputs).roles)
    with pytest.raises(InputError, match="show 0 images"), gaze.using(PAINT(), tokens=tokens):
        model(**inputs)
    wrong = PAINT(head_weights=((1.0, 1.0),))
    with pytest.raises(BadParameterError, match=r"\[6, 6\] numbers"), gaze.using(wrong):
        model(**inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "alpha must be float >= 0, got -1"),
        ({"beta": -0.1}, "beta must be float >= 0, got -0.1"),
        ({"gamma": 0.9}, "gamma must be float >= 1, got 0.9.*1: none"),
        ({"local_ratio": 1.5}, r"local_ratio must be float in \[0, 1\].*fraction of the patches"),
        ({"cut": -1.0}, r"cut must be float in \[0, 1\]"),
        ({"layers": 3}, "layers must be the first and the last layer"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        PAINT(**changes)


def test_json_round_trip():
    method = PAINT(layers=(1, 3), head_weights=((1.0, 0.5),), spatial_ratio=0.05)
    assert PAINT.from_dict(json.loads(json.dumps(method.to_dict()))) == method
