"""CausalMM: maps that sum to 1, and scores against eager forwards with such maps in every layer."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_batch,
    check_choices,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    check_shared_keys,
    close_as_goldens_ask,
    golden,
    inputs_of,
    plain_logits,
    scores,
)
from models import logits_of, picture
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regaze.errors import BadParameterError
from regaze.interventions.causalmm import CausalMM
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
    monkeypatch.setattr("regaze.interventions.causalmm._AHEAD", 2)
    with gaze.using(RANDOM):
        assert torch.equal(logits_of(model, inputs, tokens=6), want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "reverse"}, "attention must be 'uniform' or 'random', got 'reverse'"),
        ({"seed": -1}, "seed must be int >= 0"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        CausalMM(**changes)
