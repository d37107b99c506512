"""Modular duplex attention: the equation by hand and against a loop, and where it acts."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_batch,
    check_choices,
    check_full_forward,
    check_padding,
    check_shared_keys,
    inputs_of,
)
from models import logits_of, small_var
from transformers import MistralConfig, MistralForCausalLM

import regaze
from regaze import PAI, VCD, Role, TokenMap
from regaze.errors import BadParameterError, CompositionError, ShapeError
from regaze.interventions.moda import DuplexAligner, ModularDuplexAttention, text_basis
from regaze.toolkit.model import compat


def random_aligners(layers: int = 6, width: int = 32) -> list[DuplexAligner]:
    generator = torch.Generator().manual_seed(3)
    aligners = [DuplexAligner(width) for _ in range(layers)]
    for aligner in aligners:
        aligner.ratio.data = torch.randn(width, generator=generator)
        aligner.fusion.weight.data += 0.3 * torch.randn(width, width, generator=generator)
    return aligners


@pytest.fixture(scope="module")
def duplex():
    return ModularDuplexAttention(random_aligners())


def test_by_hand():
    """One image key (3, 4), text keys (1, 0) and (0, 2), values (0, 2) and (3, 3)."""
    keys = torch.tensor([[[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]]])
    values = torch.tensor([[[[9.0, 9.0], [0.0, 2.0], [3.0, 3.0]]]])
    basis = text_basis(keys, values, torch.tensor([[False, True, True]]))
    root = 0.5**0.5
    torch.testing.assert_close(basis, torch.tensor([[[[0.0, 1.0], [root, root]]]]), rtol=0, atol=1e-5)
    aligner = DuplexAligner(2)
    aligner.ratio.data = torch.tensor([1.0, 2.0])
    aligner.fusion.weight.data = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    # norm(3, 4) G = (0.8 root, 0.6 + 0.8 root); plus rho times it: (3 + 0.8 root, 5.2 + 1.6 root); W swaps.
    expected = torch.tensor([[[[5.2 + 1.6 * root, 6 + 1.6 * root]]]])
    torch.testing.assert_close(aligner(keys[:, :, :1], basis), expected, rtol=0, atol=1e-4)


def test_against_a_loop_over_samples_and_heads():
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 3, 7, 4, generator=generator) for _ in range(2))
    text = torch.tensor([[0, 0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 1, 1]]).bool()
    aligner, basis = random_aligners(1, 4)[0], text_basis(keys, values, text)
    found = aligner(keys[:, :, 1:4], basis)
    for sample in range(2):
        for head in range(3):
            k, v = (x[sample, head] for x in (keys, values))
            scaled = (k + 1e-6) / (k + 1e-6).norm(dim=-1, keepdim=True)
            gram = sum(torch.outer(scaled[j], v[j]) for j in range(7) if text[sample, j])
            gram = gram / gram.norm(dim=-1, keepdim=True)
            for place in (1, 2, 3):
                moved = k[place] + aligner.ratio * (scaled[place] @ gram)
                torch.testing.assert_close(found[sample, head, place - 1], aligner.fusion.weight @ moved)
    assert not text_basis(keys, values, torch.zeros_like(text)).any()
    with pytest.raises(ShapeError, match="one width, got 4 and 3"):
        text_basis(keys, values[..., :3], text)


def test_new_aligners_leave_the_model_as_it_is(gaze, model):
    plain = logits_of(model, inputs_of(gaze))
    for aligners in ([DuplexAligner(32) for _ in range(6)], [None] * 6):
        with gaze.using(ModularDuplexAttention(aligners)):
            assert torch.equal(logits_of(model, inputs_of(gaze)), plain)
    assert torch.equal(logits_of(model, inputs_of(gaze)), plain)


def test_batches_padding_and_further_samples(gaze, model, duplex):
    """One image, two, none; a prompt without an image stays as it is."""
    together = check_batch(gaze, duplex)
    plain = logits_of(model, inputs_of(gaze))
    assert_same_scores(together[:, 2], plain[:, 2])
    assert not torch.allclose(together[:, 0], plain[:, 0], atol=1e-2)
    check_padding(gaze, duplex)


def test_prefill_and_steps_are_one_forward(gaze, duplex):
    check_full_forward(gaze, duplex)


def test_steps_with_plain_keys(gaze, model, duplex):
    """The cache holds plain keys, so that steps without the edit are those of the plain model over it."""
    inputs = inputs_of(gaze, slice(0, 1))
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    with gaze.using(ModularDuplexAttention(duplex.aligners, decode="plain")):
        out = model.generate(**inputs, **options, output_logits=True)
        prefill = model(**inputs, use_cache=True)
    with gaze.using(duplex):
        edited = model.generate(**inputs, **options, output_logits=True)
    assert torch.equal(out.logits[0], edited.logits[0])
    assert not torch.allclose(out.logits[1], edited.logits[1], atol=1e-3)
    cache, ids = compat.cache_of(prefill), inputs["input_ids"]
    with torch.no_grad():
        mask = torch.ones(1, ids.shape[1] + 1, dtype=torch.int64)
        step = {"input_ids": out.sequences[:, ids.shape[1], None], "attention_mask": mask}
        logits = model(
            **compat.with_cache({**step, "position_ids": mask.cumsum(1)[:, -1:] - 1}, cache)
        ).logits
    torch.testing.assert_close(logits[:, -1], out.logits[1], rtol=1e-4, atol=1e-4)


def test_grouped_keys_are_as_good_as_copies():
    check_shared_keys(ModularDuplexAttention(random_aligners(5, 8)))


def test_beams_and_samples(gaze, duplex):
    check_choices(gaze, duplex)


def test_with_methods(gaze, model, duplex):
    """Methods edit the attention over the new keys; a second context has keys of its own."""
    inputs = inputs_of(gaze, slice(0, 2))
    alone = logits_of(model, inputs)
    for method in (small_var(), PAI(gamma=1.0), VCD()):
        with gaze.using(duplex, method):
            both = logits_of(model, inputs)
        with gaze.using(method):
            assert not torch.allclose(both, logits_of(model, inputs), atol=1e-3)
        assert not torch.allclose(both, alone, atol=1e-3)
    with (
        gaze.using(duplex),
        pytest.raises(CompositionError, match="keys"),
        gaze.using(ModularDuplexAttention(duplex.aligners)),
    ):
        logits_of(model, inputs)


def test_a_recording_shows_the_attention_on_the_new_keys(gaze, model, duplex):
    maps = []
    for methods in ((), (duplex,)):
        with gaze.using(*methods), gaze.recording(slices="image") as record:
            model(**inputs_of(gaze, slice(0, 1)))
        maps.append(record[0].slices)
    assert not torch.allclose(*maps, atol=1e-4)


def test_aligners_can_be_trained(gaze, model):
    aligners = random_aligners()
    inputs = inputs_of(gaze, slice(0, 1))
    with gaze.using(ModularDuplexAttention(aligners)), torch.enable_grad():
        model(**inputs, use_cache=False).logits[:, -1].square().mean().backward()
    for aligner in aligners:
        assert aligner.ratio.grad.abs().max() > 0
        assert aligner.fusion.weight.grad.abs().max() > 0
    model.zero_grad()


def test_errors(gaze, model):
    with pytest.raises(BadParameterError, match="decode must be"):
        ModularDuplexAttention([], decode="cached")
    with (
        gaze.using(ModularDuplexAttention([None])),
        pytest.raises(BadParameterError, match="1 aligners for 6"),
    ):
        model(**inputs_of(gaze))


def test_a_sliding_window_that_has_dropped_the_image():
    """Its keys go with it; a window that drops part of the prompt before the first forward cannot be."""
    roles = torch.full((1, 12), int(Role.QUERY))
    roles[0, 2:6] = int(Role.IMAGE)
    inputs, tokens = {"input_ids": torch.arange(20, 32)[None]}, TokenMap.from_roles(roles)
    duplex = ModularDuplexAttention(random_aligners(2, 8))
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=9, initializer_range=0.3,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    with regaze.wrap(model).using(duplex, tokens=tokens):
        logits = logits_of(model, inputs, 5)
        answer = logits.argmax(-1).T
        whole = torch.cat([inputs["input_ids"], answer[:, :-1]], 1)
    longer = torch.cat([roles, torch.zeros(1, 4, dtype=torch.int64)], 1)
    with regaze.wrap(model).using(duplex, tokens=TokenMap.from_roles(longer)), torch.no_grad():
        full = model(input_ids=whole).logits[:, -5:]
    assert_same_scores(logits[:, 0], full[0])


def test_devices(placed):
    """Aligners lie where their layers do; nothing is copied or waited for in a layer of a step."""

    def steps(gaze):
        aligners = random_aligners()
        for layer, aligner in zip(compat.decoder_layers(gaze.model), aligners, strict=True):
            aligner.to(next(layer.parameters()).device)
        with gaze.using(ModularDuplexAttention(aligners)):
            return logits_of(gaze.model, inputs_of(gaze, slice(0, 2)), 3)

    placed.check(steps)
