"""The search for sink dimensions finds a threshold between first tokens and ordinary ones."""

from __future__ import annotations

import pytest
import torch
from models import llava_processor, tiny_llama
from real_models import GEMMA, SMOLLM, STORIES, folder_of

import regaze
from regaze.errors import InputError
from regaze.toolkit.analysis.sink_profile import PROBES, find_sink_dimensions, sink_values
from regaze.toolkit.model import compat


def middle_values(model, tokenizer, profile):
    """Sink values of first tokens and of all others in the middle layers, [tokens, layers] each."""
    first, later = [], []
    for text in PROBES:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        third = len(states) // 3
        layer, width = compat.decoder_layers(model)[0], compat.text_config(model).hidden_size
        middle = [compat.residual(layer, state, width) for state in states[third : 2 * third + 1]]
        values = torch.stack([sink_values(state, profile.dimensions)[0] for state in middle], 1)
        first.append(values[0])
        later.append(values[1:])
    return torch.stack(first), torch.cat(later)


def planted(everywhere: float, first: float):
    """A tiny Llama: one dimension is large in all tokens, and larger in BOS, which is always first."""
    model = tiny_llama(hidden_size=96, initializer_range=0.02)
    with torch.no_grad():
        words = model.get_input_embeddings().weight
        words[:, 7] = everywhere * words.std()
        words[1, 7] = first * words.std()
    return model


def test_the_threshold_is_above_a_dimension_that_is_large_in_all_tokens():
    tokenizer = llava_processor().tokenizer
    model = planted(everywhere=24.0, first=400.0)
    profile = find_sink_dimensions(model, tokenizer)
    assert profile.dimensions == (7,)
    first, later = middle_values(model, tokenizer, profile)
    assert later.max() > 0.3125 * 96**0.5  # a fixed share of the bound would call them sinks
    assert later.max() < profile.tau < first.min()


def test_what_all_tokens_have_is_no_sink():
    with pytest.raises(
        InputError, match="no dimension of LlamaForCausalLM is massive at the first token alone"
    ):
        find_sink_dimensions(planted(everywhere=24.0, first=24.0), llava_processor().tokenizer)


def test_the_demo_has_no_massive_activations():
    with pytest.raises(InputError, match=r"the strongest averages 3\.\d\d, 4\.33 would be massive"):
        find_sink_dimensions(*regaze.load("demo"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dimensions"),
    [(SMOLLM, (507,)), (STORIES, (173, 245)), (GEMMA, (163,))],
    ids=lambda value: str(value),
)
def test_real_models(name, dimensions):
    """At most one in ten of the other tokens counts as a sink, and first tokens do in most layers."""
    model, tokenizer = regaze.load(str(folder_of(name)), dtype=torch.float32)
    profile = find_sink_dimensions(model, tokenizer)
    assert profile.dimensions == dimensions
    if name == SMOLLM:
        assert profile.tau == 20.0
    first, later = middle_values(model, tokenizer, profile)
    assert (first > profile.tau).float().mean() >= 0.5
    assert (later > profile.tau).float().mean() <= 0.1
