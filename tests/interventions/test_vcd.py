"""VCD against the authors' outputs, and against separate forwards about the noised image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
    close_as_goldens_ask,
    golden,
    golden_llama,
    inputs_of,
    plain_logits,
    scores,
    span_roles,
)
from models import logits_of, picture

import regaze
from regaze.errors import BadParameterError, InputError
from regaze.interventions.vcd import VCD, add_noise, diffuse, signal_share
from regaze.toolkit.model.stack import Branch

# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    main, noised = torch.tensor([[[2.0, 1.0, 0.0]]]), torch.tensor([[[2.0, 2.0, -1.0]]])
    assert torch.equal(scores(main, noised, 1.0, 0.1), torch.tensor([[[2.0, 0.0, 1.0]]]))
    cut = scores(main, noised, 1.0, 0.2)  # ln 0.2 + 2 = 0.39 is above 0
    assert torch.equal(cut, torch.tensor([[[2.0, 0.0, -torch.inf]]]))
    assert torch.equal(scores(main, main, 1.0, 0.0), main)


def test_rows_outside_are_left_alone():
    main, noised = torch.randn(3, 1, 9), torch.randn(3, 1, 9)
    where = torch.tensor([True, False, True])[:, None, None]
    mixed = scores(main, noised, 1.0, 0.9, where)
    assert torch.equal(mixed[1], main[1])
    assert torch.equal(mixed[[0, 2]], scores(main, noised, 1.0, 0.9)[[0, 2]])


def test_golden_combine(goldens):
    spec, tensors = golden(goldens, "vcd", "combine")
    for name, case in spec["cases"].items():
        params = case["params"]
        for step, want in enumerate(tensors[f"{name}/out/scores"]):
            main, second = (tensors[f"{name}/in/logits_{x}"][step][:, None] for x in ("main", "second"))
            close_as_goldens_ask(scores(main, second, params["alpha"], params["beta"])[:, 0], want)
    assert len(spec["cases"]) >= 3


def test_golden_noise(goldens):
    spec, tensors = golden(goldens, "vcd", "noise")
    for name, case in spec["cases"].items():
        if name == "schedule":
            share = signal_share()[tensors["schedule/in/steps"]].float()
            for coefficient, got in (("alpha_bar", share), ("one_minus_alpha_bar", 1 - share)):
                want = tensors[f"schedule/out/sqrt_{coefficient}"]
                torch.testing.assert_close(got.sqrt(), want, rtol=0, atol=1e-5)
            continue
        pixels, noise = tensors[f"{name}/in/image"], tensors[f"{name}/in/noise"]
        noisy = diffuse(pixels, noise, case["params"]["noise_step"])
        torch.testing.assert_close(noisy, tensors[f"{name}/out/noisy"], rtol=1e-5, atol=2e-6)
    assert len(spec["cases"]) >= 4


@dataclass(frozen=True)
class OtherIds(VCD):
    """VCD whose "noised image" is other token ids, as in the authors' end-to-end set."""

    second: ClassVar[torch.Tensor]

    def negative(self, context):
        return Branch({"input_ids": self.second})


def test_golden_end_to_end(goldens, tmp_path):
    model, (spec, tensors) = golden_llama(goldens, tmp_path), golden(goldens, "vcd", "e2e")
    gaze = regaze.wrap(model)
    for name, case in spec["cases"].items():
        params, ids = case["params"], tensors[f"{name}/in/input_ids"]
        roles = span_roles(ids.shape[1], params["image_start"], params["image_end"])
        OtherIds.second = tensors[f"{name}/in/second_ids"]
        with gaze.using(OtherIds(alpha=params["alpha"], beta=params["beta"]), tokens=roles):
            got = logits_of(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})[:, 0]
        close_as_goldens_ask(got, tensors[f"{name}/out/scores"], atol=5e-4)
        assert torch.equal(got.argmax(-1), tensors[f"{name}/out/tokens"])


# In a model -------------------------------------------------------------------------------------------


def test_every_step_contrasts_with_a_fresh_forward_about_the_noised_image(model, gaze):
    """The most copied bug of this literature shares the cache from the second token on."""
    inputs, vcd = gaze.inputs([picture(1)], ["Is there a dog in the image?"]), VCD(noise_step=900, seed=3)
    answer, got = answer_of(gaze, inputs, vcd)
    main = plain_logits(model, inputs, answer)
    noised = {**inputs, "pixel_values": add_noise(inputs["pixel_values"], 900, seed=3)}
    want = scores(main, plain_logits(model, noised, answer), 1.0, 0.1)
    assert_same_scores(got, want)
    assert not torch.allclose(want[1:].nan_to_num(neginf=0), main[1:], atol=0.1)


@pytest.mark.parametrize("method", [VCD(), VCD(alpha=0.5, noise_step=999)])
def test_batches_and_prompts_without_an_image(gaze, method):
    together = check_batch(gaze, method)
    plain = logits_of(gaze.model, inputs_of(gaze))
    torch.testing.assert_close(together[:, 2], plain[:, 2], rtol=1e-4, atol=1e-4)
    assert together[:, :2].isinf().any()


def test_neutral_strength_padding_full_forward_and_json(gaze):
    check_neutral(gaze, VCD(alpha=0.0, beta=0.0))
    check_padding(gaze, VCD())
    check_full_forward(gaze, VCD())
    check_json(VCD(alpha=0.5, beta=0.2, noise_step=3, seed=55))


def test_noise_follows_from_the_seed_alone(gaze):
    inputs = inputs_of(gaze, slice(0, 1))
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + len(runs))  # the global generator plays no part
        with gaze.using(VCD(seed=seed, beta=0.0)):
            runs.append(logits_of(gaze.model, inputs, tokens=1))
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2], atol=1e-3)


def test_two_strengths_share_one_branch(gaze):
    """The negative branch's name says what it holds, so that equal branches run once."""
    assert VCD(alpha=0.3).branch == VCD(beta=0.5).branch != VCD(seed=1).branch
    inputs = inputs_of(gaze, slice(0, 1))
    with gaze.using(VCD(alpha=0.25, beta=0.0), VCD(alpha=0.75, beta=0.1)):
        both = logits_of(gaze.model, inputs)
    with gaze.using(VCD(alpha=1.0)):
        assert_same_scores(both, logits_of(gaze.model, inputs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "alpha must be float >= 0, got -1"),
        ({"beta": 1.5}, r"in \[0, 1\], got 1.5"),
        ({"noise_step": 1000}, r"noise_step must be int in \[0, 1000\), got 1000"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        VCD(**changes)


def test_image_features_instead_of_pixels(gaze):
    inputs = dict(inputs_of(gaze, slice(0, 1)))
    inputs.pop("pixel_values")
    with pytest.raises(InputError, match="VCD puts noise on `pixel_values`"), gaze.using(VCD()):
        gaze.model(**inputs)
