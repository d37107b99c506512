"""`output_attentions=True` inside a block: the weights that the layers used."""

from __future__ import annotations

import pytest
import torch
from models import llava_processor, picture, small_var, tiny_llava

import regaze
from regaze import HeadKnockout
from regaze.interventions import ICD

QUESTIONS = ["Is there a dog in the image?", "What?"]
OPTIONS = {
    "max_new_tokens": 3,
    "do_sample": False,
    "eos_token_id": None,
    "output_attentions": True,
    "return_dict_in_generate": True,
}


@pytest.fixture(scope="module")
def eager():
    model = tiny_llava()
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def gaze(eager):
    return regaze.wrap(eager, llava_processor())


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs([picture(1), picture(2)], QUESTIONS)


def real_rows(weights, inputs):
    """Rows of a step that are no padding."""
    if weights.shape[2] == 1:
        return weights.transpose(1, 2).flatten(0, 1)
    return weights.transpose(1, 2)[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("blocks", [(), (HeadKnockout(),), (ICD(alpha=1e-9, beta=0.0),)], ids=len)
def test_unedited_layers_give_eagers_weights(eager, gaze, inputs, blocks):
    plain = eager.generate(**inputs, **OPTIONS).attentions
    with gaze.using(*blocks):
        found = eager.generate(**inputs, **OPTIONS).attentions
    with gaze.recording():
        recorded = eager.generate(**inputs, **OPTIONS).attentions
    for steps in (found, recorded):
        assert len(steps) == len(plain)
        for got, want in zip(steps, plain, strict=True):
            for a, b in zip(got, want, strict=True):
                assert a.shape == b.shape
                assert a.dtype == b.dtype
                torch.testing.assert_close(real_rows(a, inputs), real_rows(b, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_edited_layers_give_the_edited_rows(inputs, implementation):
    model = tiny_llava()
    model.set_attn_implementation(implementation)
    gaze = regaze.wrap(model, llava_processor())
    options = {"rows": "all", "slices": "all", "edited": True}
    with gaze.using(small_var()), gaze.recording(**options) as record:
        eager = model.generate(**inputs, **OPTIONS).attentions
    trace, length = record[0], inputs["input_ids"].shape[1]
    for n, (step, position) in enumerate(zip(trace.row_step, trace.row_position, strict=True)):
        active = trace.row_active[:, n]
        for layer in range(6):
            row = eager[step][layer][:, :, position if step == 0 else 0]
            want = trace.slices[layer][:, :, n, : length + int(step)]
            torch.testing.assert_close(row[active], want[active], rtol=0, atol=1e-5)


def test_config_asks_too(eager, gaze, inputs):
    eager.config.text_config.output_attentions = True
    try:
        with gaze.using(small_var()), torch.no_grad():
            assert all(weights is not None for weights in eager(**inputs).attentions)
    finally:
        eager.config.text_config.output_attentions = False
    with gaze.using(small_var()), torch.no_grad():
        assert eager(**inputs).attentions is None
