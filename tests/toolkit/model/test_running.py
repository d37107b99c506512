"""How people run models: caches, search, offload, compilation, low precision, adapters, gradients, copies.

Each works under an edit as it does without regaze, or raises an error that says what to do.
"""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any, ClassVar

import accelerate
import pytest
import torch
import transformers
from models import llava_processor, logits_of, picture, small_var, tiny_llama, tiny_llava
from packaging.version import Version
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

import regaze
from regaze import HeadKnockout, Role, TokenMap
from regaze.errors import BadParameterError, InputError, UnsupportedModelError
from regaze.interventions import M3ID, SPARC, VCD, Intervention
from regaze.kernels import AttentionEdit, StatsRequest

KNOCK = HeadKnockout(heads=((1, 1), (0, 2)))
METHODS = [KNOCK, small_var(), VCD(alpha=0.5, noise_step=300)]


def text_model(**changes: Any) -> Any:
    return tiny_llama(num_hidden_layers=3, **changes)


def close(a, b, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.fixture(scope="module")
def gaze(model):
    return regaze.wrap(model, llava_processor())


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs([picture(1), picture(2)], ["Is there a dog in the image?", "What is this?"])


@pytest.fixture(scope="module")
def one(gaze):
    return gaze.inputs([picture(1)], ["Is there a dog in the image?"])


@pytest.fixture(scope="module")
def prompt():
    """Text, two rows."""
    return {"input_ids": torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(0))}


@pytest.fixture(scope="module")
def expected(prompt):
    """Logits of the text model without and with the knock-out, by hand."""
    model = text_model()
    plain = logits_of(model, prompt)
    with torch.no_grad():
        for layer, head in KNOCK.heads:
            model.model.layers[layer].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] = 0.0
    return plain, logits_of(model, prompt)


def check(model, expected, prompt, tolerance: float = 1e-4, run: Any = None) -> None:
    """Plain, idle, edited and plain again; `run` is what the user calls."""
    run = model if run is None else run
    plain, edited = expected
    with regaze.wrap(model).using():
        close(logits_of(run, prompt), plain, tolerance)
    with regaze.wrap(model).using(KNOCK):
        close(logits_of(run, prompt), edited, tolerance)
    close(logits_of(run, prompt), plain, tolerance)


# Caches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("cache", ["static", "given", "given static", "none"])
def test_caches(model, gaze, inputs, method, cache):
    options = {
        "static": {"cache_implementation": "static"},
        "given": {"past_key_values": DynamicCache(config=model.config.text_config)},
        "given static": {"past_key_values": StaticCache(config=model.config.text_config, max_cache_len=120)},
        "none": {"use_cache": False},
    }
    with gaze.using(method):
        close(logits_of(model, {**inputs, **options[cache]}), logits_of(model, inputs), 2e-4)


def test_quantised_caches_change_an_edited_model_no_more_than_a_plain_one(model, gaze, one):
    pytest.importorskip("optimum.quanto")
    quantised = {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4}}
    plain = (logits_of(model, {**one, **quantised}, 2) - logits_of(model, one, 2)).abs().amax((1, 2))
    with gaze.using(KNOCK):
        edited = (logits_of(model, {**one, **quantised}, 2) - logits_of(model, one, 2)).abs().amax((1, 2))
    assert not edited[0], "the prefill reads no cache"
    assert 0 < edited[1] < 4 * plain[1]
    with gaze.recording(rows="text") as record:
        logits_of(model, {**one, **quantised})
    assert record[0].masses.shape[3] == len(record[0].row_step)


def test_a_prompt_in_chunks(model, gaze, one, prompt, expected):
    """What needs no roles does not notice; an image that is cut in two is refused."""
    chunked = text_model()
    close(*(logits_of(chunked, {**prompt, "prefill_chunk_size": size}) for size in (4, 9)))
    with regaze.wrap(chunked).using(KNOCK):
        close(logits_of(chunked, {**prompt, "prefill_chunk_size": 4}), expected[1])
    with gaze.using(small_var()), pytest.raises(InputError, match="not a whole number of images"):
        logits_of(model, {**one, "prefill_chunk_size": 16})


# Search and speculation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [KNOCK, small_var()], ids=lambda method: method.name)
def test_an_assistant_changes_nothing(model, gaze, one, method):
    """The edited model judges what a plain one proposes, and rolls back what it would not generate."""
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with gaze.using(method):
        alone = model.generate(**one, **options)
        assert torch.equal(model.generate(**one, **options, assistant_model=tiny_llava(7)), alone)


def test_an_assistant_of_a_text_model_prompt_lookup_and_early_exit():
    model, ids = text_model(), torch.tensor([[7, 8, 9, 10, 7, 8, 9, 11, 7, 8]])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with regaze.wrap(model).using(KNOCK):
        alone = model.generate(ids, **options)
        assert torch.equal(model.generate(ids, **options, assistant_model=tiny_llama(5)), alone)
        assert torch.equal(model.generate(ids, **options, prompt_lookup_num_tokens=3), alone)
        assert torch.equal(model.generate(ids, **options, assistant_early_exit=2), alone)


def test_what_counts_tokens_refuses_an_assistant(model, gaze, one):
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
        "assistant_model": tiny_llava(7),
    }
    for method in (SPARC(), M3ID()):
        with gaze.using(method), pytest.raises(InputError, match="tries and takes back"):
            model.generate(**one, **options)
    with pytest.raises(InputError, match="Recorder would count"), gaze.recording():
        model.generate(**one, **options)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_sampling_draws_from_the_edited_logits(model, gaze, inputs, method):
    """The same seed gives the same tokens as the same draw by hand."""
    with gaze.using(method):
        torch.manual_seed(5)
        options = {"max_new_tokens": 4, "eos_token_id": None, "output_logits": True}
        out = model.generate(**inputs, **options, do_sample=True, top_k=0, return_dict_in_generate=True)
    torch.manual_seed(5)
    drawn = [torch.multinomial(step.softmax(-1), 1) for step in out.logits]
    assert torch.equal(torch.cat(drawn, 1), out.sequences[:, inputs["input_ids"].shape[1] :])


def test_beams_score_the_edited_model(prompt):
    model = text_model()
    with regaze.wrap(model).using(KNOCK), torch.no_grad():
        out = model.generate(
            **prompt,
            max_new_tokens=3,
            num_beams=3,
            do_sample=False,
            eos_token_id=None,
            length_penalty=0.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        logits = model(out.sequences).logits[:, 8:-1].log_softmax(-1)
    total = logits.gather(-1, out.sequences[:, 9:, None]).sum((1, 2))
    close(out.sequences_scores, total)


# Inputs ---------------------------------------------------------------------------------------------------


def test_generate_with_embeddings(prompt, expected):
    model = text_model()
    embeds = {"inputs_embeds": model.get_input_embeddings()(prompt["input_ids"]).detach()}
    check(model, expected, embeds)
    roles = torch.full((2, 9), int(Role.QUERY))
    roles[:, 2:6] = Role.IMAGE
    gaze, tokens = regaze.wrap(model), TokenMap.from_roles(roles)
    with gaze.using(small_var()), pytest.raises(InputError, match="inputs_embeds have no roles"):
        logits_of(model, embeds)
    with gaze.using(small_var(), tokens=tokens):
        edited = logits_of(model, embeds)
    with gaze.using(small_var(), tokens=tokens):
        close(logits_of(model, prompt), edited)


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


# Compilation ----------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["module", "in place", "forward"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_torch_compile(fresh_compiler, way, cache, prompt, expected):
    """Compiled before the block, used in it and after it."""
    model = text_model()
    run, prompt = model, {**prompt, "cache_implementation": cache}
    if way == "module":
        run = torch.compile(model, backend="eager")
    elif way == "in place":
        model.compile(backend="eager")
    else:
        model.forward = torch.compile(model.forward, backend="eager")
    close(logits_of(run, prompt), expected[0])
    assert regaze.wrap(run).model is model
    check(run, expected, prompt)
    with regaze.wrap(run).recording(masses=False, entropy=True) as record:
        close(logits_of(run, prompt), expected[0])
    assert record[0].entropy.shape == (3, 2, 6, 5)


@pytest.mark.slow
@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers 5.17 passes arguments for which torch compiles further graphs in a block",
)
def test_a_compiled_decode_step_is_not_compiled_anew_for_each_token(fresh_compiler, prompt):
    model = text_model()
    model.forward = torch.compile(model.forward, backend="eager")
    static = {**prompt, "cache_implementation": "static"}
    counts = []
    with regaze.wrap(model).using(KNOCK):
        for tokens in (4, 12):
            logits_of(model, static, tokens)
            counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] > 0
    assert counts[1] <= counts[0] + 4, "a longer answer needs no more graphs"


def test_a_full_graph_has_edits_but_no_gradients(fresh_compiler, prompt):
    model = text_model()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with regaze.wrap(model).using(KNOCK):
        with torch.no_grad():
            close(compiled(**prompt).logits, model(**prompt).logits)
        with pytest.raises(Exception, match=r"gradients, .* outside of compiled graphs"):
            compiled(**prompt)


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
