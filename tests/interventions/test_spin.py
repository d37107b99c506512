"""SPIN: which heads it damps, by hand and by the authors' outputs, and its promises in a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decoding_checks import (
    check_choices,
    check_full_forward,
    check_json,
    check_layers,
    check_neutral,
    check_padding,
    check_shared_keys,
    check_spares_text,
    golden,
    inputs_of,
)

from regaze.errors import BadParameterError
from regaze.interventions.spin import SPIN
from regaze.interventions.spin.policy import DampLowHeads
from regaze.kernels import AttentionEdit, Channels, RowSelection, ScoreGate, attend
from regaze.kernels.score_gate import score_sums
from regaze.toolkit.model.callback import Callback

STRONG = SPIN(kept=0.5, factor=0.1)
BY_SCORES = SPIN(kept=0.5, factor=0.1, by="scores")


# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    """By mass heads 1 and 3 stay; by the release's sums of scores it would be 0 and 1."""
    scores = torch.tensor([[1.0, 0.5, 0.0], [-2.0, 3.0, 0.0], [0.2, 0.1, 0.0], [2.0, -3.0, 0.0]])
    mass = scores.softmax(-1)[:, :2].sum(-1)
    torch.testing.assert_close(mass, torch.tensor([0.813676, 0.952877, 0.699390, 0.881500]))
    masses = torch.stack([1 - mass, mass], -1)[None, :, None]
    coefficients = DampLowHeads(2, 1, kept=2, factor=0.08)(masses)[0, :, 0]
    assert coefficients.tolist() == [pytest.approx([x, x]) for x in (0.08, 1.0, 0.08, 1.0)]


def test_equal_heads_and_rows_without_an_image():
    even = torch.full((1, 3, 1, 2), 0.5)
    assert DampLowHeads(2, 1, kept=2, factor=0.0)(even)[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]
    blind = torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2)
    assert (DampLowHeads(2, 1, kept=1, factor=0.0)(blind) == 1).all()


def test_how_many_heads_stay():
    assert [SPIN(kept=share).count(32) for share in (0.95, 0.8, 0.7, 0.0)] == [30, 25, 22, 0]
    assert SPIN(kept=0.58).count(50) == 29


def test_golden_head_gate(shared):
    """The heads by mass and by scores, the released outputs of the latter."""
    spec, tensors = golden(shared / "goldens", "spin", "head_gate")
    for name, case in spec["cases"].items():
        params = case["params"]
        q, k, v, mask = (tensors[f"{name}/in/{part}"] for part in ("q", "k", "v", "mask"))
        kept, before = tensors[f"{name}/out/kept_by_mass"].long(), tensors[f"{name}/out/out_before"]
        image = torch.zeros(len(q), k.shape[2], dtype=torch.uint8)
        image[:, params["image_start"] : params["image_end"]] = 1
        last = torch.zeros(len(q), q.shape[2], dtype=torch.bool)
        last[:, -1] = True
        policy = DampLowHeads(2, 1, params["keep"], params["factor"] or 0.0)
        channels = Channels(groups=image, num_groups=2)
        edit = AttentionEdit(rows=RowSelection.where(last), channels=channels, policy=policy)
        got = attend(q, k, v, edit, mask=mask)[0].transpose(1, 2)
        want = before.clone()
        gate = torch.full(want.shape[:1] + want.shape[2:3], params["factor"] or 0.0).scatter(1, kept, 1.0)
        want[:, -1] *= gate[..., None]
        torch.testing.assert_close(got.reshape(want.shape), want, rtol=1e-5, atol=3e-6)
        gate = ScoreGate(image.bool(), params["keep"], params["factor"] or 0.0, rows=last)
        sums = score_sums(q, k, gate.columns, q.shape[-1] ** -0.5)[..., -1]
        torch.testing.assert_close(sums, tensors[f"{name}/out/score_sums"], rtol=1e-5, atol=1e-5)
        kept = (gate.gains(sums[..., None].expand(-1, -1, q.shape[2]))[..., -1] == 1).nonzero()[:, 1]
        assert torch.equal(kept.view(len(q), -1), tensors[f"{name}/out/kept"].long())
        if case["kind"] == "paper":  # of a batch's prompt the release gates the wrong rows
            got = attend(q, k, v, AttentionEdit(score_gate=gate), mask=mask)[0].transpose(1, 2)
            want = tensors[f"{name}/out/out_after"]
            torch.testing.assert_close(got.reshape(want.shape), want, rtol=1e-5, atol=3e-6)
    assert len(spec["cases"]) >= 4


# In a model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [STRONG, BY_SCORES], ids=["mass", "scores"])
def test_batches_padding_full_forward_choices_and_json(gaze, method):
    check_spares_text(gaze, method)
    check_padding(gaze, method)
    check_full_forward(gaze, method)
    check_choices(gaze, method)
    check_shared_keys(method)
    check_neutral(gaze, replace(method, kept=1.0), replace(method, factor=1.0))
    check_json(replace(method, factor=0.0, layers=(0, 3)))


def test_layers_and_rows(gaze):
    check_layers(gaze, SPIN(kept=0.5, layers=(4, 5)), {4, 5}, rows="last")
    inputs, slices = inputs_of(gaze, slice(0, 2)), []
    for edited in (False, True):
        recording = gaze.recording(slices="all", rows="all", edited=edited)
        with gaze.using(SPIN(kept=0.5, layers=(4, 4))), recording as record:
            gaze.model(**inputs)
        slices.append(record[0].slices[4])
    changed = (slices[0] - slices[1]).abs().amax((1, 3)) > 1e-6  # [B, rows]
    assert changed.sum(1).tolist() == [1, 1]


def test_damped_heads_are_exactly_those_with_least_on_the_image(gaze):
    """Three of six heads of one layer, in the prompt's last row, have their weights divided by ten."""
    inputs, weights = inputs_of(gaze, slice(0, 1)), []
    image = inputs["input_ids"][0] == gaze.model.config.image_token_id
    for edited in (False, True):
        recording = gaze.recording(slices="all", edited=edited)
        with gaze.using(SPIN(kept=0.5, factor=0.1, layers=(3, 3))), recording as record:
            gaze.model(**inputs)
        weights.append(record[0].slices[3, 0, :, 0])
    plain, damped = weights
    low = plain[:, image].sum(1).argsort()[:3]
    want = plain.clone()
    want[low] *= 0.1
    torch.testing.assert_close(damped, want, rtol=1e-4, atol=1e-6)


class Seen(Callback):
    """Queries, keys and outputs of layer 3, the prompt's."""

    def on_attention(self, layer, call, context):
        if layer == 3 and context.step == 0:
            self.query, self.key, self.output = call.query[0], call.key[0], call.output[0].clone()


def test_damped_heads_are_exactly_those_with_the_smallest_sums_of_scores(gaze):
    """In the prompt's last row; all other heads and rows of the layer keep their bits."""
    inputs, outputs = inputs_of(gaze, slice(0, 1)), []
    image = inputs["input_ids"][0] == gaze.model.config.image_token_id
    for methods in ((), (replace(BY_SCORES, factor=0.125, layers=(3, 3)),)):
        with gaze.using(*methods, seen := Seen()), torch.no_grad():
            gaze.model(**inputs)
        outputs.append(seen.output)
    keys = seen.key.repeat_interleave(len(seen.query) // len(seen.key), 0)
    sums = (seen.query[:, -1:] @ keys[:, image].mT).sum((1, 2))
    want = outputs[0].clone()
    want[-1, sums.argsort()[:3]] *= 0.125
    assert torch.equal(outputs[1], want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept": 1.5}, r"kept must be float in \[0, 1\], got 1.5"),
        ({"factor": -1.0}, "factor must be float >= 0, got -1"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        SPIN(**changes)


def test_a_channel_that_is_not_there():
    with pytest.raises(BadParameterError, match=r"channel must be in 0\.\.1, got 2"):
        DampLowHeads(2, 2, 1, 0.5)
