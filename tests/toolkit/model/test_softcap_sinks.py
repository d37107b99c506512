"""Gemma 2 (soft-capped scores, sliding windows) and gpt-oss (sink logits): idle, recorded and edited."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from models import compile_decoding, logits_of
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2PreTrainedModel,
    GptOssConfig,
    GptOssForCausalLM,
)

import regaze
from regaze import HeadKnockout
from regaze.errors import UnsupportedModelError
from regaze.interventions import Intervention
from regaze.kernels import AttentionEdit

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": None,
    "attn_implementation": "eager",  # what transformers 5.23 takes by itself, and 5.17 advises for Gemma 2
}
LENGTH = 11


def gemma2(window: int) -> Any:
    torch.manual_seed(0)
    capped = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 4}
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, **capped, sliding_window=window)).eval()


def gpt_oss(window: int) -> Any:
    torch.manual_seed(0)
    config = GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1, sliding_window=window)
    model = GptOssForCausalLM(config).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks, std=2.0)
    return model


@pytest.fixture(params=[gemma2, gpt_oss], scope="module")
def build(request):
    return request.param


@pytest.fixture(params=["alone", "padded"])
def inputs(request):
    """A prompt, alone or in a left-padded batch."""
    ids = torch.randint(
        1, 97, (1 if request.param == "alone" else 2, LENGTH), generator=torch.Generator().manual_seed(1)
    )
    mask = torch.ones_like(ids)
    mask[1:, :4] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@dataclass(frozen=True)
class Bias(Intervention):
    """Column bias on the first keys, in every layer and row."""

    name: ClassVar[str] = "bias"
    summary: ClassVar[str] = "bias the first keys"
    source: ClassVar[str] = "test"

    values: tuple[float, ...] = (1.0,)

    def edit(self, layer: int, step: int, context: Any) -> AttentionEdit:
        return AttentionEdit(bias=torch.tensor(self.values)[None, None])


def with_bias(monkeypatch, model, bias: torch.Tensor) -> None:
    """The model's own eager attention, with the bias added to its float mask."""
    file = sys.modules[type(model).__module__]
    own = file.eager_attention_forward

    def biased(module, query, key, value, mask, **kwargs):
        added = torch.nn.functional.pad(bias, (0, key.shape[2] - len(bias)))
        return own(module, query, key, value, mask + added, **kwargs)

    monkeypatch.setattr(file, "eager_attention_forward", biased)


@pytest.mark.parametrize("window", [5, 64])
def test_idle_is_bit_equal_to_the_model_and_leaves_it_eager(build, window, inputs):
    model = build(window)
    assert model.config._attn_implementation == "eager"
    plain = logits_of(model, inputs)
    with regaze.wrap(model).using():
        assert torch.equal(logits_of(model, inputs), plain)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_recording_changes_no_bit_and_equals_the_models_own_weights(build, inputs, cache):
    model, options = build(64), {"max_new_tokens": 3, "do_sample": False, "cache_implementation": cache}
    options |= {"disable_compile": True, "output_attentions": True, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **options)
    with regaze.wrap(model).recording(masses=False, slices="all", rows="all", lse=True) as record:
        recorded = model.generate(**inputs, **options)
    assert torch.equal(recorded.sequences, plain.sequences)
    slices = record.traces[0].slices
    assert slices.shape[3] == LENGTH + 2
    for layer in range(4):
        own = plain.attentions[0][layer] * inputs["attention_mask"][:, None, :, None]
        torch.testing.assert_close(slices[layer, :, :, :LENGTH, : own.shape[-1]], own)
        for step in (1, 2):
            own = plain.attentions[step][layer][:, :, 0]
            torch.testing.assert_close(slices[layer, :, :, LENGTH + step - 1, : own.shape[-1]], own)


@pytest.mark.parametrize("window", [5, 64])
def test_an_edited_prefill_equals_the_models_own_attention_with_the_edit(build, window, inputs, monkeypatch):
    model, bias = build(window), Bias((0.5, -1.0, 2.0, 0.0, 1.5, -2.0, 3.0))
    with regaze.wrap(model).using(bias), torch.no_grad():
        edited = model(**inputs).logits
    plain = model(**inputs).logits
    with_bias(monkeypatch, model, torch.tensor(bias.values))
    own = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(edited[real], own[real], rtol=1e-4, atol=1e-4)
    assert (own - plain)[real].abs().max() > 0.1, "the bias must matter"


def test_an_edited_generation_equals_the_models_own_attention_with_the_edit(build, inputs, monkeypatch):
    model, bias = build(64), Bias((0.5, -1.0, 2.0, 0.0, 1.5, -2.0, 3.0))
    with regaze.wrap(model).using(bias):
        edited = logits_of(model, inputs)
    with_bias(monkeypatch, model, torch.tensor(bias.values))
    torch.testing.assert_close(edited, logits_of(model, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [5, 64])
def test_a_head_knocked_out_is_one_whose_output_projection_is_zero(build, window, inputs):
    model = build(window)
    with regaze.wrap(model).using(HeadKnockout(heads=((1, 4), (2, 0)))):
        edited = logits_of(model, inputs)
    with torch.no_grad():
        for layer, head in ((1, 4), (2, 0)):
            model.model.layers[layer].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] = 0.0
    torch.testing.assert_close(edited, logits_of(model, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [5, 13])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_columns_keep_their_numbers_once_a_sliding_window_has_dropped_keys(build, inputs, window, cache):
    """A generation over the cache equals one without it, whose layers see all keys and a mask."""
    model, bias = build(window), Bias((0.5, -1.0, 2.0, 0.0, 1.5, -2.0, 3.0, -1.0, 2.0, 1.0, -2.0))
    with regaze.wrap(model).using(bias):
        cached = logits_of(model, {**inputs, "cache_implementation": cache, "disable_compile": True}, 6)
        full = logits_of(model, {**inputs, "use_cache": False}, 6)
    torch.testing.assert_close(cached, full, rtol=1e-4, atol=1e-4)
    assert (logits_of(model, inputs, 6) - full).abs().amax((1, 2)).min() > 0.1, "every step is edited"


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_records_keep_their_columns_once_a_sliding_window_has_dropped_keys(build, inputs, cache):
    model, options = build(5), {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    wanted = {"masses": False, "slices": "all", "rows": "all", "top1": True}
    with regaze.wrap(model).recording(**wanted) as record:
        model.generate(**inputs, **options, cache_implementation=cache, disable_compile=True)
    out = model.generate(**inputs, **options, output_attentions=True, return_dict_in_generate=True)
    trace, own = record[0], out.attentions
    for layer in range(4):
        for step in (1, 2, 3):
            row, length = LENGTH + step - 1, LENGTH + step
            kept = own[step][layer][:, :, 0]
            first = length - kept.shape[-1]
            assert first == (0 if model.config.layer_types[layer] == "full_attention" else length - 5)
            torch.testing.assert_close(trace.slices[layer, :, :, row, first:length], kept)
            assert not trace.slices[layer, :, :, row, :first].any()
            assert torch.equal(trace.top_column[layer, :, :, row], first + kept.argmax(-1))


def test_a_model_whose_own_attention_drops_the_soft_cap_is_not_edited(monkeypatch):
    """Older transformers let Gemma 2 run under SDPA, which drops it: an edit would bring it back."""
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    model = gemma2(64)
    model.set_attn_implementation("sdpa")
    with (
        regaze.wrap(model).using(Bias()),
        pytest.raises(UnsupportedModelError, match="`softcap`, which SDPA leaves out"),
    ):
        model(input_ids=torch.tensor([[1, 2, 3]]))


def test_a_model_that_ran_eager_attention_is_idle_to_the_bit():
    from models import tiny_llama

    model = tiny_llama()
    model.set_attn_implementation("eager")
    inputs = {"input_ids": torch.tensor([[0, 0, 5, 6, 7], [4, 5, 6, 7, 8]])}
    inputs["attention_mask"] = (inputs["input_ids"] > 0).long()
    plain = logits_of(model, inputs)
    with regaze.wrap(model).using():
        assert torch.equal(logits_of(model, inputs), plain)


def test_compiled_decode_steps_have_the_soft_cap_and_the_sinks(build):
    """Also over the static caches of sliding windows, which drop keys."""
    torch._dynamo.reset()
    ids = torch.randint(1, 97, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "cache_implementation": "static"}
    model, compiled = build(5), build(5)
    compile_decoding(compiled)
    with regaze.wrap(model).using(Bias()):
        eager = logits_of(model, inputs)
    with regaze.wrap(compiled).using(Bias()):
        assert torch.equal(logits_of(compiled, inputs), eager)
    torch._dynamo.reset()
