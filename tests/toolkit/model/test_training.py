"""Gradients, training and its modes, saved and copied models.

Each works under an edit as it does without regaze, or raises an error that says what to do.
"""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any, ClassVar

import pytest
import torch
from models import logits_of
from text_model import KNOCK, check, close, expected_logits, text_model, text_prompt
from transformers import LlamaForCausalLM

import regaze
from regaze.errors import BadParameterError, InputError, UnsupportedModelError
from regaze.interventions import Intervention
from regaze.kernels import AttentionEdit, StatsRequest


@pytest.fixture(scope="module")
def prompt():
    return text_prompt()


@pytest.fixture(scope="module")
def expected(prompt):
    return expected_logits(prompt)


# Gradients and modes --------------------------------------------------------------------------------------


class Bias(Intervention):
    """A learnt column bias, and the attention of every layer kept with its graph."""

    name: ClassVar[str] = "bias"
    summary: ClassVar[str] = "a column bias"
    source: ClassVar[str] = "test"

    def prepare(self, context: Any) -> None:
        self.maps.clear()

    def edit(self, layer: int, step: int, context: Any) -> AttentionEdit:
        return AttentionEdit(bias=self.bias, stats=StatsRequest(full_rows=True, edited=True))

    def on_stats(self, layer: int, stats: Any, context: Any) -> None:
        self.maps.append(stats.slices)


def learnt() -> Bias:
    method = Bias()
    object.__setattr__(method, "bias", torch.zeros(1, 6, 4, requires_grad=True))
    object.__setattr__(method, "maps", [])
    return method


def test_gradients_flow_through_edits_and_maps(prompt):
    model, method = text_model(), learnt()

    def loss() -> torch.Tensor:
        out = model(**prompt).logits[:, -1].log_softmax(-1)[:, 7].sum()
        return out + method.maps[2][:, 1, -1, 3].sum()

    with regaze.wrap(model).using(method):
        (slope,) = torch.autograd.grad(loss(), method.bias)
        step = 3e-3  # weights are fp32 inside
        for head, column in ((0, 1), (5, 3)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    method.bias[0, head, column] += sign * step
                    values.append(loss())
                    method.bias[0, head, column] -= sign * step
            found = (values[0] - values[1]) / (2 * step)
            assert float(found) == pytest.approx(float(slope[0, head, column]), rel=2e-2, abs=2e-3)
    assert slope.abs().min() > 0


def test_the_fused_kernels_have_no_gradients(prompt, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("REGAZE_BACKEND", "triton")
    model = text_model()
    with regaze.wrap(model).using(learnt()), pytest.raises(BadParameterError, match="no gradients"):
        model(**prompt)


def test_training_and_its_modes(prompt, expected):
    model = text_model().train()
    gaze = regaze.wrap(model)
    with gaze.using(KNOCK):
        model(**prompt, labels=prompt["input_ids"]).loss.backward()
        projection = model.model.layers[1].self_attn.o_proj.weight.grad
        assert not projection[:, 8:16].any(), "nothing comes from the head that was removed"
        assert projection[:, :8].any()
        model.eval()
        close(logits_of(model, prompt), expected[1])
        with torch.inference_mode():
            close(logits_of(model, prompt), expected[1])
    assert not model.training


def test_dropout_and_checkpointing_say_what_to_do(prompt):
    dropping = text_model(attention_dropout=0.1).train()
    with regaze.wrap(dropping).using(KNOCK), pytest.raises(UnsupportedModelError, match=r"call model\.eval"):
        dropping(**prompt)
    saving = text_model().train()
    saving.gradient_checkpointing_enable()
    with regaze.wrap(saving).using(KNOCK):
        loss = saving(**prompt, labels=prompt["input_ids"], use_cache=False).loss
        with pytest.raises(InputError, match="gradient_checkpointing_disable"):
            loss.backward()


# Saving and copying ---------------------------------------------------------------------------------------


def test_saving_a_wrapped_model_saves_the_plain_one(prompt, expected, tmp_path):
    model = text_model()
    with regaze.wrap(model).using(KNOCK):
        model.save_pretrained(tmp_path)
        close(logits_of(model, prompt), expected[1])
    assert "regaze" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"
    close(logits_of(again, prompt), expected[0])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_copies_are_made_outside_of_the_block(duplicate, prompt, expected):
    model = text_model()
    gaze = regaze.wrap(model)
    with gaze.using(KNOCK):
        with pytest.raises(InputError, match="copy or pickle it outside of the block"):
            duplicate(model)
        close(logits_of(model, prompt), expected[1])
    check(duplicate(model), expected, prompt)
    other = duplicate(gaze)
    assert other.model is not model
    check(other.model, expected, prompt)
