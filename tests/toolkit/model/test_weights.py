"""Weights that lie elsewhere, in another precision, or that adapters add to.

Each works under an edit as it does without regaze, or raises an error that says what to do.
"""

from __future__ import annotations

from typing import Any

import accelerate
import pytest
import torch
import transformers
from models import logits_of
from packaging.version import Version
from text_model import KNOCK, check, close, expected_logits, text_model, text_prompt
from transformers import LlamaForCausalLM

import regaze
from regaze.errors import InputError, UnsupportedModelError


@pytest.fixture(scope="module")
def prompt():
    return text_prompt()


@pytest.fixture(scope="module")
def expected(prompt):
    return expected_logits(prompt)


# Where weights lie, and in which precision ----------------------------------------------------------------


@pytest.mark.parametrize("where", ["cpu", "disk", "both"])
def test_offload_through_accelerate(where, tmp_path, prompt, expected):
    model = text_model()
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    elif where == "disk":
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    else:
        places = {
            "model.embed_tokens": "cpu",
            "model.norm": "cpu",
            "model.rotary_emb": "cpu",
            "lm_head": "cpu",
        }
        places |= {f"model.layers.{layer}": ("cpu", "disk")[layer % 2] for layer in range(3)}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    check(model, expected, prompt)
    with regaze.wrap(model).recording(masses=False, entropy=True) as record:
        logits_of(model, prompt)
    assert record[0].entropy.shape == (3, 2, 6, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precisions(dtype, prompt, expected):
    model = text_model().to(dtype)
    gaze, plain = regaze.wrap(model), logits_of(model, prompt)
    with gaze.using(), gaze.recording(masses=False, slices="all", entropy=True) as record:
        assert torch.equal(logits_of(model, prompt), plain)
    assert record[0].slices.dtype == record[0].entropy.dtype == torch.float32
    with gaze.using(KNOCK):
        edited = logits_of(model, prompt)
    lost = (plain - expected[0]).abs().max()
    assert (edited - expected[1]).abs().max() <= 4 * lost + 1e-5
    assert (edited - plain).abs().max() > 1.0


@pytest.mark.parametrize("library", ["torch", "torchao", "quanto", "bitsandbytes"])
def test_int8_weights(library, prompt, tmp_path):
    """Edited, an int8 model is as far from the edited fp32 model as its plain logits are from the plain."""
    model = text_model()
    if library == "torch":
        quantization = pytest.importorskip("torch.ao.quantization")
        model = quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    elif library == "torchao":
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    elif library == "quanto":
        quanto = pytest.importorskip("optimum.quanto")
        quanto.quantize(model, weights=quanto.qint8)
        quanto.freeze(model)
    else:
        pytest.importorskip("bitsandbytes")
        from transformers import BitsAndBytesConfig

        model.save_pretrained(tmp_path)
        model = LlamaForCausalLM.from_pretrained(
            tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
        )
    gaze, plain = regaze.wrap(model), logits_of(model, prompt)
    with gaze.using(), gaze.recording(masses=False, entropy=True):
        assert torch.equal(logits_of(model, prompt), plain)
    with gaze.using(KNOCK):
        first = logits_of(model, prompt, 1)[0]
        assert (first - plain[0]).abs().max() > 0.5
    with torch.no_grad():
        handles = [_without_heads(model, layer) for layer in (0, 1)]
        close(logits_of(model, prompt, 1)[0], first, 5e-2)  # int8 activations round differently
    for handle in handles:
        handle.remove()


def _without_heads(model, layer: int) -> Any:
    """Blank what the knocked-out heads of a layer hand to its output projection."""
    heads = [head for where, head in KNOCK.heads if where == layer]

    def blank(module, args):
        hidden = args[0].clone()
        for head in heads:
            hidden[..., 8 * head : 8 * head + 8] = 0.0
        return (hidden,)

    return model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(blank)


# Adapters -------------------------------------------------------------------------------------------------


#: transformers 5.24 refuses older ones for adapters of its own, and they pass it two caches at once.
PEFT_FOR_5_24 = "0.22"


def skip_if_peft_is_too_old(peft: Any) -> None:
    if Version(transformers.__version__) >= Version("5.24") and Version(peft.__version__) < Version(
        PEFT_FOR_5_24
    ):
        pytest.skip(
            f"transformers {transformers.__version__} needs peft {PEFT_FOR_5_24}, not {peft.__version__}"
        )


@pytest.mark.parametrize("when", ["before", "after", "in the model"])
def test_peft_adapters(when, prompt):
    peft = pytest.importorskip("peft")
    if when == "in the model":
        skip_if_peft_is_too_old(peft)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model, bare = text_model(), logits_of(text_model(), prompt)
    gaze = regaze.wrap(model)
    if when == "in the model":
        model.add_adapter(lora)
        run = model
    else:
        run = peft.get_peft_model(model, lora)
    if when == "before":
        gaze = regaze.wrap(run)
    assert gaze.model is model
    plain = logits_of(run, prompt)
    assert (plain - bare).abs().max() > 1.0
    with gaze.using():
        assert torch.equal(logits_of(run, prompt), plain)
    with gaze.using(KNOCK):
        edited = logits_of(run, prompt)
    with torch.no_grad():
        handles = [_without_heads(model, layer) for layer in (0, 1)]
        close(logits_of(run, prompt), edited)
    for handle in handles:
        handle.remove()


def test_learnt_prompts_are_refused(prompt):
    peft = pytest.importorskip("peft")
    model = text_model()
    run = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(UnsupportedModelError, match="outside of the model inside it"):
        regaze.wrap(run)


def test_a_cache_with_learnt_prompts_was_filled_outside(prompt):
    peft = pytest.importorskip("peft")
    skip_if_peft_is_too_old(peft)
    model = text_model()
    run = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with regaze.wrap(model).using(KNOCK), pytest.raises(InputError, match="filled outside"):
        logits_of(run, prompt)
