"""How people run models: caches, search, inputs, compilation.

Each works under an edit as it does without regaze, or raises an error that says what to do; see also
test_weights.py and test_training.py.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from models import logits_of, picture, small_var, tiny_llama, tiny_llava
from packaging.version import Version
from text_model import KNOCK, check, close, expected_logits, text_model, text_prompt
from transformers import DynamicCache, StaticCache

import regaze
from regaze import Role, TokenMap
from regaze.errors import InputError
from regaze.interventions import M3ID, SPARC, VCD

METHODS = [KNOCK, small_var(), VCD(alpha=0.5, noise_step=300)]


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs([picture(1), picture(2)], ["Is there a dog in the image?", "What is this?"])


@pytest.fixture(scope="module")
def one(gaze):
    return gaze.inputs([picture(1)], ["Is there a dog in the image?"])


@pytest.fixture(scope="module")
def prompt():
    return text_prompt()


@pytest.fixture(scope="module")
def expected(prompt):
    return expected_logits(prompt)


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
