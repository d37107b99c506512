"""Logits read from hidden states against the model's own, by family and by convention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_checks import Case
from pretended_device import Accelerator
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from zoo.base import Entry
from zoo.every import RUNNING, TEXT, label, skip_if_older

from regaze.errors import UnsupportedModelError
from regaze.toolkit.model import compat
from regaze.toolkit.model.hidden_logits import LogitReader

_SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "attn_implementation": "eager",
}
_CONVENTIONS = {
    "plain": (LlamaConfig, {}, compat.LogitScale()),
    "multiplied": (CohereConfig, {"logit_scale": 0.3}, compat.LogitScale(factor=0.3)),
    "divided": (GraniteConfig, {"logits_scaling": 7.0}, compat.LogitScale(divisor=7.0)),
    "capped": (Gemma2Config, {"final_logit_softcapping": 0.7, "head_dim": 8}, compat.LogitScale(cap=0.7)),
}


def last_layer(model: Any, **inputs: Any) -> tuple[Tensor, Tensor]:
    """The stream that leaves the last layer [B, L, D], and the model's own logits [B, L, V]."""
    streams: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        streams.append(compat.residual(module, output[0] if isinstance(output, tuple) else output, None))

    decoder = compat.decoder_of(model)
    decoder = getattr(decoder, "decoder", decoder)  # OPT's
    layers = getattr(decoder, "layers", None) or decoder.h
    handle = layers[-1].register_forward_hook(keep)
    try:
        with torch.no_grad():
            logits = model(**inputs).logits
    finally:
        handle.remove()
    return streams[-1], logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", _CONVENTIONS)
def test_the_last_layer_gives_the_models_own_logits(name, dtype):
    kind, options, scale = _CONVENTIONS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**_SIZES, **options)).eval().to(dtype)
    assert compat.logit_scale(model) == scale
    stream, logits = last_layer(model, input_ids=torch.randint(3, 40, (2, 5)))
    with torch.no_grad():
        assert torch.equal(LogitReader(model).read(stream), logits)
        unnormalised = LogitReader(model).read(stream, normalise=False)
    assert not torch.allclose(unnormalised, logits, atol=1e-2)
    if scale.cap is not None:
        assert unnormalised.abs().max() <= scale.cap


#: They merge several streams, or mask image tokens, between the last layer and the logits.
_MORE_THAN_A_SCALE = {"gemma3n", "chameleon", "florence2", "hy_v4", "hy_v4_vl", "qwen4_exp"}


@pytest.mark.parametrize("entry", [e for e in TEXT if e.name not in _MORE_THAN_A_SCALE], ids=label)
def test_every_text_family_is_read_as_it_reads_itself(entry: Entry):
    skip_if_older(entry)
    model, _ = entry.build()
    ids = torch.randint(5, 20, (1, 6), generator=torch.manual_seed(0))
    stream, logits = last_layer(model, input_ids=ids)
    with torch.no_grad():
        torch.testing.assert_close(LogitReader(model).read(stream), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("entry", [e for e in RUNNING if e.name not in _MORE_THAN_A_SCALE], ids=label)
def test_every_vision_family_is_read_as_it_reads_itself(entry: Entry):
    skip_if_older(entry)
    case = Case(entry)
    stream, logits = last_layer(case.model, **case.inputs(0))
    with torch.no_grad():
        read = LogitReader(case.model).read(stream)[:, -logits.shape[1] :]
    torch.testing.assert_close(read, logits, rtol=1e-4, atol=1e-4)


def test_a_factor_that_the_class_does_not_apply_does_not_count():
    class Unscaled(type(AutoModelForCausalLM.from_config(CohereConfig(**_SIZES)))):  # type: ignore[misc]
        def forward(self, input_ids):
            return self.lm_head(self.model(input_ids).last_hidden_state)

    model = Unscaled(CohereConfig(**_SIZES))
    assert compat.text_config(model).logit_scale
    assert compat.logit_scale(model) == compat.LogitScale()


def test_a_factor_of_another_name():
    config = FalconH1Config(
        **_SIZES, lm_head_multiplier=0.25, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8
    )
    model = AutoModelForCausalLM.from_config(config)
    assert compat.logit_scale(model) == compat.LogitScale(factor=0.25)


def test_a_model_without_a_final_norm_is_named():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = AutoModelForCausalLM.from_config(GPT2Config(**sizes)).eval()
    hidden = torch.randn(1, 3, 16)
    LogitReader(model).read(hidden)
    del model.transformer.ln_f
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel has no final norm"):
        LogitReader(model).read(hidden)
    assert LogitReader(model).read(hidden, normalise=False).shape == (1, 3, 40)


def test_hidden_states_follow_the_weights_that_lie_apart():
    """Of a model whose parts were moved by hand, without accelerate, which moves what it has dispatched."""
    model, accelerator = LlamaForCausalLM(LlamaConfig(**_SIZES)), Accelerator()
    hidden = torch.randn(1, 3, 16)
    want = LogitReader(model).read(hidden)
    accelerator.place(model.model.norm)
    with accelerator:
        model.lm_head.to(accelerator.second)
        got = LogitReader(model).read(hidden)
        assert got.device == accelerator.second
        assert torch.equal(got.cpu(), want)
        assert torch.equal(
            LogitReader(model).read(hidden, normalise=False).cpu(), model.lm_head.cpu()(hidden)
        )
