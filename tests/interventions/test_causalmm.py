"""CausalMM: maps of either kind, and scores against forwards with such maps or features written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decoding_checks import (
    answer_of,
    assert_same_scores,
    check_batch,
    check_choices,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    check_shared_keys,
    check_spares_text,
    close_as_goldens_ask,
    golden,
    inputs_of,
    plain_logits,
    scores,
)
from family_checks import case_of
from models import logits_of, picture
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from zoo.every import VISION

from regaze.errors import BadParameterError, UnsupportedModelError
from regaze.interventions import ICD, VCD
from regaze.interventions.causalmm import CausalMM
from regaze.interventions.causalmm.counterfactual_maps import counterfactual_map, patch_gain, permuted
from regaze.kernels import AttentionEdit, attend

UNIFORM, RANDOM = CausalMM(beta=0.0), CausalMM(attention="random", beta=0.0)


# The equations ----------------------------------------------------------------------------------------


def test_golden_combine(shared):
    """The case of two branches takes the sum of their contrasts."""
    spec, tensors = golden(shared / "goldens", "causalmm", "combine")
    for name, case in spec["cases"].items():
        params = case["params"]
        main = tensors[f"{name}/in/logits_main"]
        others = [tensors[f"{name}/in/logits_{n}"] for n in ("second", "third")[: params["branches"]]]
        other, gamma = sum(others) / len(others), params["gamma"] * len(others)
        for step, want in enumerate(tensors[f"{name}/out/scores"]):
            got = scores(main[step][:, None], other[step][:, None], gamma, params["epsilon"])[:, 0]
            close_as_goldens_ask(got, want, atol=5e-6)
    assert len(spec["cases"]) >= 2


def test_golden_uniform_map(shared):
    """Rows sum to 1; the release's do not."""
    spec, tensors = golden(shared / "goldens", "causalmm", "language")
    for name in spec["cases"]:
        given, want = (tensors[f"{name}/{part}"] for part in ("in/attention", "out/ours_uniform"))
        batch, heads, length, _ = given.shape
        query, key = torch.randn(2, batch, heads, length, 8)
        value = torch.eye(length).expand(batch, heads, length, length)
        edit = AttentionEdit(head_score_gain=torch.zeros(batch, heads))
        got, _ = attend(query, key, value, edit, is_causal=True)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        released = tensors[f"{name}/out/uniform"]
        assert not torch.allclose(released.sum(-1), torch.ones(()))
    assert spec["cases"]


# In a model -------------------------------------------------------------------------------------------


def draws(seed, layer, length, heads):
    generator = torch.Generator().manual_seed(seed * 10_000 + layer)
    return torch.rand(length, heads, generator=generator).clamp_min(1e-6).T


def counterfactual(method, layers):
    """An attention function for transformers: the maps written out."""

    def attention(module, query, key, value, mask, **kwargs):
        groups, heads, length = query.shape[1] // key.shape[1], query.shape[1], key.shape[2]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        visible = torch.ones(query.shape[2], length).tril(length - query.shape[2])
        weights = (query @ key.mT * kwargs["scaling"]).masked_fill(visible == 0, -torch.inf).softmax(-1)
        if module.layer_idx in layers:
            weights = visible.expand_as(weights)
            if method.attention == "random":
                weights = weights * draws(method.seed, module.layer_idx, length, heads)[:, None]
            weights = weights / weights.sum(-1, keepdim=True)
        return (weights @ value).transpose(1, 2), weights

    return attention


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        (CausalMM(), range(6)),
        (CausalMM(layers=(2, 3)), (2, 3)),
        (CausalMM(attention="random", seed=3), range(6)),
        (CausalMM(attention="random", layers=(5, 5)), (5,)),
    ],
)
def test_every_step_contrasts_with_maps_written_out(model, gaze, method, layers):
    """Also at later steps, where the release's branch is the user's."""
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    with gaze.using(method):
        got = logits_of(model, inputs, tokens=4)
    answer, text = got.argmax(-1).T, model.model.language_model
    main, before = plain_logits(model, inputs, answer), text.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS["written_out"] = counterfactual(method, set(layers))
    text.config._attn_implementation = "written_out"
    try:
        other = plain_logits(model, inputs, answer)
    finally:
        text.config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS["written_out"]
    assert not torch.allclose(main[1:], other[1:], atol=1e-2)
    assert_same_scores(got, scores(main, other, 1.0, 0.1), tolerance=5e-4)


@pytest.mark.parametrize("method", [UNIFORM, RANDOM])
def test_batches_padding_full_forward_and_choices(gaze, method):
    together = check_batch(gaze, method)
    plain = logits_of(gaze.model, inputs_of(gaze))
    assert_same_scores(together[:, 2], plain[:, 2])
    assert not torch.allclose(together[:, 0], plain[:, 0], atol=1e-2)
    check_padding(gaze, method)
    check_full_forward(gaze, method)
    check_choices(gaze, method)


def test_neutral_strength_shared_keys_and_json(gaze):
    check_neutral(gaze, CausalMM(alpha=0.0, beta=0.0))
    check_shared_keys(UNIFORM)
    check_shared_keys(RANDOM)
    check_json(CausalMM(attention="random", layers=(1, 3), seed=5))


def test_weights_are_drawn_anew_for_long_answers(monkeypatch, model, gaze):
    inputs = inputs_of(gaze, slice(0, 2))
    with gaze.using(RANDOM):
        want = logits_of(model, inputs, tokens=6)
    monkeypatch.setattr("regaze.interventions.causalmm.method._AHEAD", 2)
    with gaze.using(RANDOM):
        assert torch.equal(logits_of(model, inputs, tokens=6), want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "reverse"}, "'shuffle' or 'reversed', got 'reverse'"),
        ({"seed": -1}, "seed must be int >= 0"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        CausalMM(**changes)


# In the vision tower ------------------------------------------------------------------------------------

KINDS = ("uniform", "random", "shuffle", "reversed")


def test_golden_vision_gain(shared):
    """The permutations are the stored ones; the release's results are half precision."""
    spec, tensors = golden(shared / "goldens", "causalmm", "vision_gain")
    for name, case in spec["cases"].items():
        attention, features = (tensors[f"{name}/in/{part}"] for part in ("attention", "features"))
        kind = case["params"]["kind"]
        if kind == "shuffle":
            edited = permuted(attention, tensors[f"{name}/in/permutation"])
        else:
            edited = counterfactual_map(attention, kind)
        gain = patch_gain(edited, features.shape[1])
        torch.testing.assert_close(gain, tensors[f"{name}/out/gain"], rtol=1e-5, atol=1e-6)
        got = features * gain[..., None]
        torch.testing.assert_close(got, tensors[f"{name}/out/features"], rtol=2e-3, atol=2e-3)
    assert len(spec["cases"]) >= 2


def test_maps_in_the_place_of_a_tower_s():
    """Uniform rows give every patch 1/T; draws are the same for all images."""
    attention = torch.randn(3, 2, 10, 10, generator=torch.Generator().manual_seed(0)).softmax(-1)
    alike = patch_gain(counterfactual_map(attention, "uniform"), 9)
    torch.testing.assert_close(alike, torch.full((3, 9), 0.1))
    shuffled = counterfactual_map(attention, "shuffle", seed=1)
    torch.testing.assert_close(shuffled.sum((-2, -1)), attention.sum((-2, -1)))
    assert not torch.equal(shuffled, attention)
    assert torch.equal(shuffled[:1], counterfactual_map(attention[:1], "shuffle", seed=1))
    reverse = counterfactual_map(attention, "reversed")
    assert reverse.amin((-2, -1)).eq(0).all()
    drawn = counterfactual_map(attention, "random", seed=1)
    assert torch.equal(drawn[0], drawn[2])
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 2
    with pytest.raises(UnsupportedModelError, match="8 of them"):
        patch_gain(attention, 8)


def scaled_logits(model, inputs, answer, gain):
    """[T, B, V] of a model whose image features are scaled by [N, patches], by a hook of the test's own."""
    projector = model.model.multi_modal_projector
    handle = projector.register_forward_pre_hook(lambda module, args: (args[0] * gain[..., None], *args[1:]))
    try:
        return plain_logits(model, inputs, answer)
    finally:
        handle.remove()


def gain_of(model, inputs, kind, seed=0):
    """By the tower's own weights, returned by eager attention."""
    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = tower(inputs["pixel_values"], output_attentions=True).attentions
    finally:
        tower.set_attn_implementation(before)
    layer = model.config.vision_feature_layer
    return patch_gain(counterfactual_map(maps[layer], kind, seed), 64)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_contrasts_with_scaled_features(model, gaze, kind):
    inputs = gaze.inputs([[picture(1), picture(2)]], ["Is there a dog in the image?"])
    answer, got = answer_of(gaze, inputs, CausalMM(where="vision", attention=kind, seed=2))
    other = scaled_logits(model, inputs, answer, gain_of(model, inputs, kind, 2))
    want = scores(plain_logits(model, inputs, answer), other, 1.0, 0.1)
    assert_same_scores(got, want, tolerance=5e-4)


@pytest.mark.parametrize("counted", [(-2, 3), (-1, 4), (-4, 1)])
def test_the_block_is_that_of_the_features_however_it_is_counted(model, gaze, counted, monkeypatch):
    """Hidden states are numbered from the embeddings on, so that those of number 3 come out of block 2."""
    inputs, found = gaze.inputs([picture(1)], ["Is there a dog in the image?"]), []
    for layer in counted:
        monkeypatch.setattr(model.config, "vision_feature_layer", layer)
        with gaze.using(CausalMM(where="vision", attention="shuffle", beta=0.0)):
            found.append(logits_of(model, inputs, 1))
    assert torch.equal(*found)


def test_both_branches(model, gaze):
    """(1 + 2 alpha) l - alpha l_v - alpha l_l, each branch as it is alone."""
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    method = CausalMM(where="both", alpha=0.7, beta=0.0, layers=(2, 3))
    answer, got = answer_of(gaze, inputs, method, steps=1)
    main = plain_logits(model, inputs, answer)
    others = []
    for where in ("vision", "language"):
        _, scored = answer_of(gaze, inputs, replace(method, where=where, alpha=1.0), steps=1)
        others.append((2 * main.log_softmax(-1) - scored.log_softmax(-1)).log_softmax(-1))
    want = 2.4 * main.log_softmax(-1) - 0.7 * sum(others)
    assert_same_scores(got, want, tolerance=1e-3)


def test_as_released_only_the_first_token_is_contrasted(model, gaze):
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    released = CausalMM(where="vision", attention="uniform", as_released=True, beta=0.3)
    answer, got = answer_of(gaze, inputs, released)
    with gaze.using(replace(released, as_released=False)):
        first = logits_of(model, inputs, 1)
    torch.testing.assert_close(got[:1], first)
    main = plain_logits(model, inputs, answer)
    assert_same_scores(got[1:], scores(main, main, 0.0, 0.3)[1:])
    check_full_forward(gaze, replace(released, attention="random"))


@pytest.mark.parametrize("where", ["vision", "both"])
def test_the_tower_in_batches_padding_full_forward_and_choices(gaze, where):
    method = CausalMM(where=where, attention="random", beta=0.0)
    check_spares_text(gaze, method)
    if where == "vision":
        check_padding(gaze, method)
        check_full_forward(gaze, method)
        check_choices(gaze, method)


def test_beside_branches_of_other_images_and_of_none(model, gaze):
    """Every context has its own features: the contrasts add up."""
    inputs, method = inputs_of(gaze, slice(0, 2)), CausalMM(where="vision", beta=0.0)
    others = VCD(alpha=0.5, beta=0.0, noise_step=300), ICD(alpha=0.5, beta=0.0)
    plain, alone = logits_of(model, inputs, 1), []
    for each in (method, *others):
        with gaze.using(each):
            alone.append(logits_of(model, inputs, 1))
    with gaze.using(method, *others):
        together = logits_of(model, inputs, 1)
    assert_same_scores(together, sum(alone) - 2 * plain, tolerance=1e-3)


def test_what_the_tower_cannot_do(gaze):
    with pytest.raises(BadParameterError, match="for the vision tower alone"):
        CausalMM(attention="shuffle")
    with pytest.raises(BadParameterError, match="as_released is about the vision tower"):
        CausalMM(as_released=True)
    for name, message in (("llava_next", "one picture per image"), ("gemma3", "class token|one layer")):
        entry = next(each for each in VISION if each.name == name)
        case = case_of(entry)
        with (
            case.gaze.using(CausalMM(where="vision")),
            pytest.raises(UnsupportedModelError, match=message),
        ):
            logits_of(case.model, case.inputs(0, 1), tokens=1)
