"""VAF against its formula on recorded scores, and what must never happen to it."""

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
from models import logits_of

from regaze import Role
from regaze.errors import BadParameterError
from regaze.interventions.vaf import VAF


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def vaf(**changes) -> VAF:
    return VAF(**{"enhance": 1.6, "suppress": 0.5, "layers": (1, 3), **changes})


@pytest.fixture(scope="module")
def inputs(gaze):
    return inputs_of(gaze, slice(0, 2))


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


def test_it_edits_the_layers_it_should(gaze):
    check_layers(gaze, vaf(layers=(0, 2)), {0, 1, 2}, "text")
    check_layers(gaze, VAF(), {2}, "text")


def test_each_factor_acts_by_itself(model, gaze, inputs):
    plain = logits_of(model, inputs)
    for alone in ({"suppress": 1.0}, {"enhance": 1.0}):
        with gaze.using(vaf(**alone)):
            assert not torch.allclose(logits_of(model, inputs), plain, atol=1e-2)


def test_what_every_method_must_satisfy(gaze):
    check_neutral(gaze, VAF(enhance=1.0, suppress=1.0))
    check_spares_text(gaze, vaf())
    check_padding(gaze, vaf())
    check_full_forward(gaze, vaf())
    check_shared_keys(vaf())
    check_json(vaf())


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
