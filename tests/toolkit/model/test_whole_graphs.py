"""Compiled decode steps under edits and recordings: whole graphs with the tokens of eager code."""

from __future__ import annotations

import gc

import pytest
import torch
import transformers
from acting_methods import INSIDE, acting
from models import compile_decoding, llava_processor, logits_of, picture, small_var, tiny_llama, tiny_llava
from torch._dynamo.utils import counters
from transformers import BartConfig, BartForConditionalGeneration

import regaze
from regaze import HeadKnockout
from regaze.interventions import VISTA
from regaze.toolkit.model.attention import _ATTACHED
from regaze.toolkit.model.callback import overrides

KNOCK = HeadKnockout(heads=((1, 1), (0, 2)))
METHODS = {name: acting(name) for name in INSIDE} | {
    "causalmm": acting("causalmm", attention="random"),
    "spin by scores": acting("spin", by="scores"),
}
HIDING = acting("fastv", remove=False)
WHOLE = [name for name, method in METHODS.items() if method.facts.graphs in ("captured", "compiled")]
BROKEN = [name for name in INSIDE if name not in WHOLE]


@pytest.fixture(scope="module")
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()  # which `reset` leaves to those of earlier tests
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def inputs(gaze):
    encoded = gaze.inputs([picture(1), picture(2)], ["Is there a dog in the image?", "What is this?"])
    return {**encoded, "cache_implementation": "static"}


@pytest.fixture(scope="module")
def compiled(fresh_compiler):
    model = tiny_llava()
    compile_decoding(model)
    return regaze.wrap(model, llava_processor())


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("name", [*WHOLE, "fastv"])
def test_edited_decode_steps_are_whole_graphs(name, gaze, compiled, inputs):
    """Of the methods that declare it, and tokens that are hidden; the others say what breaks the graph."""
    method = HIDING if name == "fastv" else METHODS[name]
    plain = logits_of(gaze.model, inputs)
    with gaze.using(method):
        eager = logits_of(gaze.model, inputs)
    with compiled.using(method):
        assert torch.equal(logits_of(compiled.model, inputs), eager)
    if name != "mma":
        assert not torch.equal(eager, plain), "the method does nothing here"
    # The block has ended. Compiled, transformers' own attention differs from its eager self in the last bits.
    torch.testing.assert_close(logits_of(compiled.model, inputs), plain, rtol=1e-4, atol=1e-4)
    assert not counters["graph_break"]
    assert graphs() <= 4, "plain and edited, of the user's rows and of two contexts: methods share them"


def test_recorded_decode_steps_are_whole_graphs(gaze, compiled, inputs):
    with gaze.recording() as eager:
        logits = logits_of(gaze.model, inputs)
    with compiled.recording() as record, compiled.using(KNOCK):
        logits_of(compiled.model, inputs)
    with compiled.recording() as record:
        assert torch.equal(logits_of(compiled.model, inputs), logits)
    assert torch.equal(record[0].masses, eager[0].masses)
    assert torch.equal(record[0].row_step, eager[0].row_step)


def test_a_block_leaves_nothing_of_its_modules_to_graphs(compiled, inputs):
    with compiled.using(KNOCK):
        logits_of(compiled.model, inputs)
        assert len(_ATTACHED) == 6
    assert not _ATTACHED
    model = tiny_llama()
    block = regaze.wrap(model).using(KNOCK)
    block.__enter__()
    assert len(_ATTACHED) == 5
    del model, block
    gc.collect()
    assert not _ATTACHED, "a model that is dropped inside a block is freed"


REASONS = {
    "MLP outputs": "edits the outputs of MLPs",
    "attention outputs": "edits the outputs of attention",
    "logits": "keeps the inputs of layers",
    "tokens": "cannot remove tokens: a static cache",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_hooks_layers_says_so_by_name(name, compiled, inputs):
    method = METHODS[name]
    reason = next(reason for part, reason in REASONS.items() if part in method.facts.edits)
    reason = "`on_attention`" if overrides(method, "on_attention") else f"{type(method).__name__} {reason}"
    with compiled.using(method), pytest.raises(Exception, match=reason):
        logits_of(compiled.model, inputs)


def test_generate_compiles_its_decode_step_as_one_graph(gaze, inputs):
    """As it does by itself on a GPU: the hooks around the forward stay outside of its graph."""
    torch._dynamo.reset()
    config = transformers.CompileConfig(backend="eager", fullgraph=True)
    config._compile_all_devices = True
    wrapped = regaze.wrap(tiny_llava(), llava_processor())
    counters.clear()
    for method in (KNOCK, small_var()):
        with gaze.using(method):
            eager = logits_of(gaze.model, inputs)
        with wrapped.using(method):
            assert torch.equal(logits_of(wrapped.model, {**inputs, "compile_config": config}), eager)
    assert graphs() == 1


def test_cross_attention_is_part_of_the_graph(monkeypatch):
    """Layers of a decoder with both kinds of attention, over a static cache."""
    # The form of mask that older releases give a graph is not one that Numba's kernel takes.
    monkeypatch.setenv("REGAZE_BACKEND", "torch")
    torch._dynamo.reset()

    def bart():
        torch.manual_seed(0)
        small = {"vocab_size": 97, "d_model": 48, "encoder_layers": 2, "decoder_layers": 3, "init_std": 0.3}
        small |= {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
        small |= {f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")}
        return BartForConditionalGeneration(BartConfig(**small)).eval()

    model, compiled = bart(), bart()
    compile_decoding(compiled)
    prompt = {"input_ids": torch.arange(5, 27).view(2, 11), "cache_implementation": "static"}
    methods = HeadKnockout(heads=((1, 1),)), HeadKnockout(heads=((2, 0),), cross=True)
    with regaze.wrap(model).using(*methods):
        eager = logits_of(model, prompt)
    with regaze.wrap(compiled).using(*methods):
        assert torch.equal(logits_of(compiled, prompt), eager)
    assert not torch.equal(logits_of(model, prompt), eager)


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods",
    [
        (KNOCK, VISTA(), KNOCK),
        pytest.param((KNOCK, VISTA(), small_var(), VISTA()), marks=pytest.mark.exhaustive),
    ],
    ids=["there and back", "each twice"],
)
def test_graphs_without_hooks_on_layers_do_not_serve_forwards_that_have_them(gaze, inputs, methods):
    """The same shapes under a method that captures everything, and then under one that edits MLPs."""
    torch._dynamo.reset()
    model = tiny_llava()
    model.forward = torch.compile(model.forward, backend="eager")
    wrapped = regaze.wrap(model, llava_processor())
    for method in methods:
        with gaze.using(method):
            eager = logits_of(gaze.model, inputs)
        with wrapped.using(method):
            torch.testing.assert_close(logits_of(model, inputs), eager, rtol=1e-4, atol=1e-4)


def test_the_operator_passes_the_checks_of_torch(gaze, inputs):
    """Its shapes without data are those with data, and it changes none of its arguments."""
    from regaze.toolkit.model.attention import attention_operator

    with gaze.using(KNOCK):
        number = next(iter(_ATTACHED))
        query, key = torch.randn(1, 6, 1, 32), torch.randn(1, 2, 5, 32)
        call = (query, key, key, None, None, None, 0.0, None, None, "", number)
        with pytest.raises(Exception, match="called by itself"):
            attention_operator(*call)
    with gaze.using():
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(attention_operator, call, test_utils=checks)
