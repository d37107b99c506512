"""Massive activations and sinks, planted and found again."""

from __future__ import annotations

import pytest
import torch
from models import llava_processor, picture, small_var, tiny_llama, tiny_llava

import regaze
from regaze import Role
from regaze.errors import BadParameterError, InputError
from regaze.interventions import VCD, HeadKnockout
from regaze.toolkit.analysis import (
    key_importance,
    massive_activations,
    sink_stability,
    sink_tokens,
    with_answers,
)
from regaze.toolkit.analysis.sink_profile import SinkProfile, sink_values

PROFILE = SinkProfile((3, 7), 5.0)
QUESTIONS = ["Is there a dog in the image?", "What?"]


@pytest.fixture(scope="module")
def planted():
    """A LLaVA in which the first token and one patch have massive activations, in two dimensions."""
    model = tiny_llava()
    with torch.no_grad():
        model.get_input_embeddings().weight[1, 3] = 4000.0
    original = model.model.multi_modal_projector.forward

    def forward(features):
        projected = original(features)
        projected[..., 11, 7] = -5000.0
        return projected

    model.model.multi_modal_projector.forward = forward
    return regaze.wrap(model, llava_processor())


@pytest.fixture(scope="module")
def inputs(planted):
    return planted.inputs([picture(1), picture(2)], QUESTIONS)


def hidden_states(model, inputs):
    """[7, B, L, D], what enters each layer and what leaves the last, through hooks of the test's own."""
    states, layers = [], model.get_decoder().layers
    handles = [
        layer.register_forward_pre_hook(
            lambda m, args, kwargs: states.append((args or (kwargs.get("hidden_states"),))[0]),
            with_kwargs=True,
        )
        for layer in layers
    ]
    last = layers[-1].register_forward_hook(
        lambda m, a, out: states.append(out[0] if isinstance(out, tuple) else out)
    )
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        model(**inputs, position_ids=positions)
    for handle in [*handles, last]:
        handle.remove()
    return torch.stack(states)


def test_massive_activations_are_where_they_were_planted(planted, inputs):
    found = massive_activations(planted, inputs, k=2)
    assert found.values.shape == (7, 2, 2)
    tokens = planted.tokens(inputs)
    states = hidden_states(planted.model, inputs)
    for sample in range(2):
        first = int((tokens.roles[sample] != Role.PAD).int().argmax())
        patch = int(tokens.image_cells(sample)[11])
        assert found.positions[0, sample].tolist() == [patch, first]
        assert found.dimensions[0, sample].tolist() == [7, 3]
        assert found.values[0, sample].tolist() == [-5000.0, 4000.0]
        real = states[:, sample, tokens.roles[sample] != Role.PAD].abs()
        torch.testing.assert_close(found.values[:, sample, 0].abs(), real.amax((1, 2)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            found.median[:, sample], real.flatten(1).median(1).values, rtol=1e-3, atol=1e-5
        )
    assert found.massive()[0].all()
    assert not found.massive(least=1e5).any()
    assert str(found).splitlines()[1].split()[:2] == ["0", "0"]
    assert massive_activations(planted, inputs, layers=[6, 2]).layers == (2, 6)
    with pytest.raises(BadParameterError, match="k must be at least 1"):
        massive_activations(planted, inputs, k=0)


def test_sink_tokens_of_text_and_image(planted, inputs):
    found = sink_tokens(planted, inputs, PROFILE)
    states, tokens = hidden_states(planted.model, inputs), planted.tokens(inputs)
    real = tokens.roles != Role.PAD
    for layer in range(6):
        torch.testing.assert_close(
            found.values[layer][real], sink_values(states[layer], (3, 7))[real], rtol=1e-4, atol=1e-4
        )
    assert not found.values[:, ~real].any()
    assert found.counts()[0, :, Role.IMAGE].tolist() == [1, 1]
    assert found.counts()[0, :, Role.SYSTEM].tolist() == [1, 1]
    assert found.mask(Role.IMAGE)[0, 1].nonzero().flatten().tolist() == [int(tokens.image_cells(1)[11])]
    grid = found.image_map(sample=1)
    assert grid.shape == (6, 8, 8)
    assert grid[0].flatten().argmax() == 11
    assert sink_tokens(planted, inputs, PROFILE, layers=[4]).layers == (4,)


def test_what_is_known_of_the_base_model_is_used(gaze):
    with pytest.raises(BadParameterError, match="not published"):
        sink_tokens(gaze, gaze.inputs([picture(1)], ["What?"]))
    demo = regaze.wrap(*regaze.load("demo"))
    found = sink_tokens(demo, demo.inputs([picture(1)], ["What?"]))
    assert found.tau == demo.model.config.text_config.sink_tau


def test_stability_over_prompts(planted, inputs):
    both = sink_tokens(planted, inputs, PROFILE)
    alone = sink_tokens(planted, planted.inputs([picture(5)], ["Where is the train?"]), PROFILE)
    stable = sink_stability([both, alone])
    assert stable.frequency.shape == (6, 64)
    assert stable.frequency[0].nonzero().flatten().tolist() == [11]
    assert stable.frequency[0, 11] == 1.0
    assert stable.jaccard[0] == 1.0
    text = sink_stability([both, alone], role=Role.SYSTEM)
    assert text.frequency[0, 0] == 1.0  # the first token, wherever padding put it
    assert text.jaccard[0] == 1.0
    none = sink_stability([both, alone], role=Role.TAIL)
    assert none.jaccard[0].isnan()
    with pytest.raises(InputError, match="1 was given"):
        sink_stability([alone])
    other = sink_tokens(planted, inputs, PROFILE, layers=[1])
    with pytest.raises(InputError, match="different layers"):
        sink_stability([both, other])


def test_partly_stable_sinks_by_hand(planted, inputs):
    import dataclasses

    found = sink_tokens(planted, inputs, PROFILE, layers=[0])
    values = torch.zeros_like(found.values)
    for sample, cells in ((0, [1, 2, 3]), (1, [2, 3, 4])):
        values[0, sample, found.tokens.image_cells(sample)[cells]] = 9.0
    stable = sink_stability([dataclasses.replace(found, values=values)])
    assert stable.frequency[0, :6].tolist() == [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    assert stable.jaccard.tolist() == [0.5]


@pytest.mark.parametrize("block", [50, 1 << 21])
def test_what_each_key_receives(gaze, model, block, monkeypatch):
    monkeypatch.setattr("regaze.toolkit.model.attention_call.CPU_BLOCK_ELEMENTS", block)
    prompts = gaze.inputs([picture(1), picture(2)], QUESTIONS)
    inputs = with_answers(gaze, prompts, ["Yes, a dog", "No"])
    found = key_importance(gaze, inputs, layers=[1, 4])
    model.set_attn_implementation("eager")
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        dense = model(**inputs, position_ids=positions, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    real = inputs["attention_mask"].bool()
    for number, layer in enumerate((1, 4)):
        for sample in range(2):
            rows = dense[layer][sample][:, real[sample]][:, :, real[sample]]
            count = torch.arange(rows.shape[-1], 0, -1)
            torch.testing.assert_close(
                found[number, sample][:, real[sample]], rows.sum(1) / count, rtol=1e-4, atol=1e-6
            )
            assert not found[number, sample][:, ~real[sample]].any()
    with gaze.using(VCD()):
        again = key_importance(gaze, inputs, layers=[1, 4])
    torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block", [50, 1 << 21])
def test_what_each_key_receives_of_edited_attention(gaze, block, monkeypatch):
    """Layers whose weights are edited are summed block by block: as the recorded edited rows add up."""
    monkeypatch.setattr("regaze.toolkit.model.attention_call.CPU_BLOCK_ELEMENTS", block)
    inputs = gaze.inputs([picture(1), picture(2)], QUESTIONS)
    with gaze.using(HeadKnockout(heads=[(1, 0)]), small_var()):
        found = key_importance(gaze, inputs, layers=[1, 4])
        with gaze.recording(slices="all", rows="all", edited=True) as record, torch.no_grad():
            gaze.model(**inputs, use_cache=False)
    real = inputs["attention_mask"].bool()
    rows = record[0].slices[[1, 4]] * record[0].row_active[:, None, :, None]
    count = real.flip(1).cumsum(1).flip(1)[:, None]
    torch.testing.assert_close(found, rows.sum(3) / count, rtol=1e-4, atol=1e-6)


def test_a_text_model_has_sinks_too():
    gaze = regaze.wrap(tiny_llama(), llava_processor().tokenizer)
    inputs = gaze.inputs([None], ["What is that?"])
    assert massive_activations(gaze, inputs).values.shape == (6, 1, 3)
    assert key_importance(gaze, inputs).shape[:3] == (5, 1, 6)
    with pytest.raises(InputError, match="with a known grid"):
        sink_tokens(gaze, inputs, SinkProfile((3,), 2.0)).image_map()
