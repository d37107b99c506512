"""FarSight: registers by hand and by the authors' outputs, and its promises in a model."""

from __future__ import annotations

import math

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_batch,
    check_choices,
    check_full_forward,
    check_json,
    check_layers,
    check_neutral,
    check_padding,
    check_shared_keys,
    golden,
    inputs_of,
)
from models import logits_of

from regaze.errors import BadParameterError, InputError
from regaze.interventions.controls.uniform_sink import evened
from regaze.interventions.farsight import FarSight, register_sink, registers, released_rates
from regaze.kernels import AttentionEdit, StatsRequest, attend

STRONG = FarSight(sigma=0.1)


# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    """Three tokens: the paper's rates, the release's, and how little the last registers of many matter."""
    tokens = torch.ones(1, 3, dtype=torch.bool)
    count = registers(tokens)
    assert count.tolist() == [[2, 1, 0]]
    paper = register_sink(count, torch.tensor(0.8))[0, 0]
    torch.testing.assert_close(paper[:2], torch.tensor([-0.428899, -0.8]), rtol=0, atol=1e-6)
    assert paper[2] == -torch.inf
    rates = released_rates(tokens, 1, 0.8, alibi=True)
    torch.testing.assert_close(rates[0, 0, :2], torch.tensor([0.80390625, 0.70390625]))
    weights = register_sink(count, rates).exp()[0, 0]
    torch.testing.assert_close(weights, torch.tensor([0.647903, 0.494649, 0.0]), rtol=0, atol=1e-6)
    many = register_sink(torch.tensor([[10**6]]), torch.tensor(0.8))
    assert many.exp().item() == pytest.approx(1 / math.expm1(0.8))
    scores = torch.tensor([[1.0, -torch.inf, -torch.inf], [0.5, 1.5, -torch.inf], [0.2, -1.0, 0.7]])
    shares = torch.sigmoid(scores.logsumexp(-1) - paper)
    torch.testing.assert_close(shares, torch.tensor([0.806730, 0.931710, 1.0]), rtol=0, atol=2e-6)


def test_padding_is_no_token():
    """A prompt has the same registers and rates alone, behind padding and before it."""
    tokens = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    count, rates = registers(tokens), released_rates(tokens, 4, 0.8, alibi=True)
    assert count.tolist() == [[0, 0, 2, 1, 0], [2, 1, 0, 0, 0]]
    assert torch.equal(rates[0, :, 2:], rates[1, :, :3])
    alone = torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(rates[0, :, 2:], released_rates(alone, 4, 0.8, alibi=True)[0])
    single = torch.ones(1, 1, dtype=torch.bool)
    assert register_sink(registers(single), released_rates(single, 4, 0.8, True)).eq(-torch.inf).all()


def test_golden_register(shared):
    """Weights with the paper's rates and with the release's, which counts padding as tokens."""
    spec, tensors = golden(shared / "goldens", "farsight", "register")
    for name, case in spec["cases"].items():
        params = case["params"]
        q, k, v = (tensors[f"{name}/in/{part}"] for part in "qkv")
        real = tensors[f"{name}/in/real"].bool()
        count = registers(real)
        length = real.shape[1]
        assert torch.equal(count[real], tensors[f"{name}/out/registers"][real])
        visible = real[:, None, None] & torch.ones(length, length, dtype=torch.bool).tril()
        every = torch.ones_like(real)
        rates = {
            "weights_paper": torch.tensor(params["sigma"]),
            "attn": released_rates(every, params["heads"], params["sigma"], params["alibi"]),
        }
        for part, rate in rates.items():
            sink = register_sink(count, rate)
            if part == "attn" and name.startswith("noop"):
                sink = torch.full_like(sink, -torch.inf)  # the mask removes the registers
            request = StatsRequest(full_rows=True, edited=True)
            out, stats = attend(q, k, v, AttentionEdit(sink=sink, stats=request), mask=visible)
            rows = real[:, None, :, None]
            want = tensors[f"{name}/out/{part}"]
            torch.testing.assert_close(stats.slices * rows, want * rows, rtol=1e-5, atol=2e-6)
        want = tensors[f"{name}/out/out"].transpose(1, 2)
        torch.testing.assert_close(out * rows, want * rows, rtol=1e-5, atol=2e-6)
    assert len(spec["cases"]) >= 4


def test_the_control_has_the_mean_of_the_registers_in_every_row_that_has_any():
    sink = torch.tensor([[[1.0, 3.0, 0.0, 5.0]], [[4.0, 0.0, 0.0, 0.0]]]).log()
    assert evened(sink).exp()[:, 0].tolist() == [
        pytest.approx([3.0, 3.0, 0.0, 3.0]),
        pytest.approx([4.0, 0.0, 0.0, 0.0]),
    ]


# In a model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [STRONG, FarSight(sigma=0.2, as_released=True)], ids=["paper", "release"])
def test_batches_padding_and_full_forward(gaze, method):
    check_batch(gaze, method)
    check_padding(gaze, method)
    check_full_forward(gaze, method)


def test_choices_shared_keys_and_neutral(gaze):
    check_choices(gaze, STRONG)
    check_shared_keys(FarSight(sigma=0.05))
    check_neutral(gaze, FarSight(sigma=1000.0), FarSight(sigma=1000.0, as_released=True))
    assert FarSight(sigma=1000.0).controls() == ()
    check_json(FarSight(sigma=0.3, as_released=True, alibi=False, cache="none", layers=(0, 3)))


def test_layers_and_rows(gaze):
    """Row i of a prompt keeps Z / (Z + R_i), with R_i of the registers after it; its last row keeps all."""
    check_layers(gaze, FarSight(sigma=0.1, layers=(4, 5)), {4, 5}, rows="all")
    inputs, kept = inputs_of(gaze, slice(0, 2)), []
    for edited in (False, True):
        recording = gaze.recording(slices="all", rows="all", edited=edited)
        with gaze.using(FarSight(sigma=0.1, layers=(4, 4))), recording as record:
            gaze.model(**inputs)
        kept.append(record[0].slices[4])
    ratio = (kept[1] / kept[0]).nan_to_num(0.0).amax(-1)  # [B, H, rows]
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        shares = ratio[row][:, mask]
        assert (shares[:, :-1] < 1 - 1e-4).all()
        torch.testing.assert_close(shares[:, -1], torch.ones(len(shares)))
    part = kept[0].clone()
    part[part == 0] = torch.nan
    ratios = kept[1] / part
    spread = (ratios - ratios.nanmean(-1, keepdim=True)).abs()
    assert spread[spread.isfinite()].max() < 1e-4  # one factor per row


def test_without_a_cache_all_rows_get_new_registers(gaze):
    """cache="none" is the release's: each step is a forward of all that there is; with a cache it refuses."""
    inputs, method = inputs_of(gaze, slice(0, 1)), FarSight(sigma=0.1, cache="none")
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "output_logits": True}
    with gaze.using(method):
        out = gaze.model.generate(**inputs, **options, use_cache=False, return_dict_in_generate=True)
        for step, logits in enumerate(out.logits):
            length = inputs["input_ids"].shape[1] + step
            ids = out.sequences[:, :length]
            given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            with torch.no_grad():
                assert_same_scores(logits, gaze.model(**given).logits[:, -1])
        with pytest.raises(InputError, match="use_cache=False"):
            gaze.model.generate(**inputs, **options)
    frozen = logits_of_steps(gaze, FarSight(sigma=0.1), inputs, out.sequences)
    cached = logits_of_steps(gaze, method, inputs, out.sequences)
    torch.testing.assert_close(frozen[0], cached[0])
    assert not torch.allclose(frozen[1], cached[1], atol=1e-4)


def logits_of_steps(gaze, method, inputs, sequences):
    """Logits behind the prompt and behind one token more, each by a forward of its own."""
    length, rows = inputs["input_ids"].shape[1], []
    for more in (0, 1):
        ids = sequences[:, : length + more]
        with gaze.using(method), torch.no_grad():
            given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            rows.append(gaze.model(**given).logits[:, -1])
    return rows


def test_a_prompt_without_an_image_is_edited_too(gaze):
    inputs = inputs_of(gaze, slice(2, 3))
    plain = logits_of(gaze.model, inputs)
    with gaze.using(STRONG):
        assert not torch.allclose(logits_of(gaze.model, inputs), plain, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.0}, "sigma must be float > 0, got 0"),
        ({"cache": "limit"}, "cache must be .*got 'limit'"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        FarSight(**changes)
