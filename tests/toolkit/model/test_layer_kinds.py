"""Layers unlike most: queries that choose their keys, late queries alone, several residual streams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_checks import QUESTIONS, Case, case_of
from models import logits_of, small_var
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from zoo.every import TEXT, VISION, skip_if_older
from zoo.text import BLOCK_SPARSE

import regaze
from regaze import HeadKnockout, Role
from regaze.errors import UnsupportedModelError
from regaze.interventions import VISTA, DoLa
from regaze.toolkit.analysis import logit_lens, massive_activations
from regaze.toolkit.analysis.sink_profile import find_sink_dimensions
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback


def case(name: str) -> Case:
    entry = next(e for e in (*VISION, *TEXT, BLOCK_SPARSE) if e.name == name)
    skip_if_older(entry)
    return case_of(entry)


# Queries that choose their keys -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek_v32", "glm_moe_dsa", "hy_v4", "hy_v4_vl", "minimax_m3_vl_text"])
def test_keys_that_a_query_does_not_choose_stay_unseen(name):
    """Such models put their choice into the mask under the names of transformers' implementations alone."""
    found = case(name)
    config = compat.text_config(found.model)
    most = getattr(config, "index_topk", None) or config.index_topk_blocks * config.index_block_size
    inputs = found.inputs(0)
    assert inputs["input_ids"].shape[1] > most
    with found.gaze.using(Callback()):
        assert torch.equal(logits_of(found.model, inputs), logits_of_plain(found, inputs))
    with found.gaze.recording(slices="all") as record:
        logits_of(found.model, inputs, tokens=2)
    indexed = [layer for layer in range(config.num_hidden_layers) if chooses(found, layer)]
    assert indexed
    for layer in indexed:
        seen = (record[0].slices[layer][0, :, -1] > 0).sum(-1)
        assert (seen <= most).all()


def logits_of_plain(found: Case, inputs: Any) -> Tensor:
    fresh, _ = found.entry.build()
    return logits_of(fresh, inputs)


def chooses(found: Case, layer: int) -> bool:
    attention = next(module for module, site in found.places.items() if site.layer == layer)
    return getattr(attention, "indexer", None) is not None or getattr(attention, "skip_topk", False)


@pytest.mark.parametrize("form", ["bool", "added"])
def test_a_mask_takes_in_what_was_chosen(form):
    query, key = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    causal = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    lowest = torch.finfo(torch.float32).min
    mask = causal if form == "bool" else torch.where(causal, 0.0, lowest)
    options = {"indices": torch.tensor([[[0, 1], [1, 2], [0, 2]]], dtype=torch.int32)}
    got = compat.sparse_mask(torch.nn.Identity(), query, key, mask, options)
    seen = torch.tensor([[True, False, False], [False, True, False], [True, False, True]])
    assert torch.equal(got[0, 0] if form == "bool" else got[0, 0] == 0, seen)
    assert compat.sparse_mask(torch.nn.Identity(), query, key, mask, {"indices": None}) is mask


# Layers that see late queries alone ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma4():
    """Its last two layers reuse the keys of earlier ones; the prompt has no padding, so no mask is made."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"] * 2
    config = AutoConfig.for_model(
        "gemma4_text",
        vocab_size=100,
        vocab_size_per_layer_input=100,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=48,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        global_head_dim=12,
        initializer_range=0.2,
        sliding_window=6,
        layer_types=kinds,
        pad_token_id=0,
        eos_token_id=None,
    )
    ids = torch.arange(5, 14)[None]
    model = AutoModelForCausalLM.from_config(config).eval()
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_logits_of_several_late_rows_of_gemma4(gemma4, keep):
    model, inputs = gemma4
    with torch.no_grad():
        plain = model(**inputs, logits_to_keep=keep).logits
        with regaze.wrap(model).using(Callback()):
            assert torch.equal(model(**inputs, logits_to_keep=keep).logits, plain)
        assert torch.equal(model(**inputs, logits_to_keep=keep).logits, plain)
    assert not [name for name in vars(compat.decoder_of(model)) if "slice" in name]


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}])
def test_caches_and_lookups_of_gemma4(gemma4, options):
    model, inputs = gemma4

    def logits() -> Tensor:
        output = model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
        return torch.stack(output.logits)

    plain = logits()
    with regaze.wrap(model).using(Callback()):
        assert torch.equal(logits(), plain)


# Several residual streams -------------------------------------------------------------------------------

STREAMS = ["hy_v4_vl", "qwen4_exp"]


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("method", [small_var(), DoLa(), VISTA()], ids=lambda method: method.name)
def test_methods_that_read_hidden_states_refuse_hyper_connections(name, method):
    found = case(name)
    message = r"DecoderLayer has several residual streams \(hyper-connections\)"
    with found.gaze.using(method), pytest.raises(UnsupportedModelError, match=message):
        logits_of(found.model, found.inputs(0), tokens=2)


@pytest.mark.parametrize("name", STREAMS)
def test_analyses_that_read_hidden_states_refuse_hyper_connections(name):
    found = case(name)
    inputs = found.inputs(0)
    with pytest.raises(UnsupportedModelError, match="several residual streams"):
        logit_lens(found.gaze, inputs)
    with pytest.raises(UnsupportedModelError, match="several residual streams"):
        massive_activations(found.gaze, inputs)
    with pytest.raises(UnsupportedModelError, match="several residual streams"):
        find_sink_dimensions(found.model, found.processor, texts=QUESTIONS)


@pytest.mark.parametrize("name", STREAMS)
def test_attention_of_hyper_connections_can_be_recorded_and_edited(name):
    found = case(name)
    layer = min(site.layer for site in found.places.values())
    with found.gaze.using(HeadKnockout(heads=((layer, 0),))), found.gaze.recording() as record:
        edited = logits_of(found.model, found.inputs(0))
    assert not torch.allclose(edited, found.plain[:, :1], atol=1e-3)
    assert record[0].masses[..., Role.IMAGE].sum() > 0


def test_a_width_that_the_configuration_does_not_say_is_not_checked():
    hidden, layer = torch.zeros(1, 2, 6), torch.nn.Identity()
    assert compat.residual(layer, hidden, None) is hidden
    assert compat.residual(layer, hidden, 6) is hidden
    for wider in (hidden[:, :, None], torch.zeros(1, 2, 12)):
        with pytest.raises(UnsupportedModelError, match="Identity has several residual streams"):
            compat.residual(layer, wider, 6)
