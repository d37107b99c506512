"""HGAI against its formula on recorded scores, and what must never happen to it."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    check_full_forward,
    check_json,
    check_layers,
    check_neutral,
    check_padding,
    check_shared_keys,
    check_spares_text,
    inputs_of,
)

from regaze import Role
from regaze.errors import BadParameterError
from regaze.interventions.hgai import HGAI


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def hgai(**changes) -> HGAI:
    return HGAI(**{"alpha": 0.8, "layers": (1, 3), **changes})


@pytest.fixture(scope="module")
def inputs(gaze):
    return inputs_of(gaze, slice(0, 2))


def test_every_head_gets_the_mean_size_of_all(model, gaze, inputs):
    """In the row that predicts the answer; the other rows stay."""
    tokens = gaze.tokens(inputs)
    wanted = {"slices": "all", "rows": "all", "layers": [2], "lse": True}
    with gaze.recording(**wanted) as plain:
        model(**inputs)
    with gaze.using(hgai(layers=(2, 2))), gaze.recording(**wanted, edited=True) as edited:
        model(**inputs)
    weights, after = plain[0].slices[0], edited[0].slices[0]  # [B, heads, L, L]
    scores = weights[:, :, -1].log() + plain[0].lse[0][:, :, -1:]
    scores = scores + 0.8 * tokens.mask(Role.IMAGE)[:, None] * scores.abs().mean(1, keepdim=True)
    expected = torch.where(weights[:, :, -1] > 0, scores, -torch.inf).softmax(-1)
    close(after[:, :, -1], expected)
    assert torch.equal(after[:, :, :-1], weights[:, :, :-1])
    assert not torch.allclose(after[:, :, -1], weights[:, :, -1], atol=1e-3)


def test_it_edits_the_layers_it_should(gaze):
    check_layers(gaze, hgai(layers=(0, 2)), {0, 1, 2}, "last")
    check_layers(gaze, HGAI(), {1, 2}, "last")


def test_what_every_method_must_satisfy(gaze):
    check_neutral(gaze, HGAI(alpha=0.0))
    check_spares_text(gaze, hgai())
    check_padding(gaze, hgai())
    check_full_forward(gaze, hgai())
    check_shared_keys(hgai())
    check_json(hgai())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "alpha must be float >= 0, got -1"),
        ({"alpha": float("nan")}, "finite number"),
        ({"layers": (3, 1)}, "layers must be the first and the last layer"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        HGAI(**changes)


def test_layers_that_do_not_exist(model, gaze, inputs):
    message = r"layers 2\.\.6 do not exist: the model has layers 0\.\.5"
    with pytest.raises(BadParameterError, match=message), gaze.using(hgai(layers=(2, 6))):
        model(**inputs)
