"""EAH: which head lends its map, by hand and by the authors' outputs, and its promises in a model."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    check_choices,
    check_json,
    check_layers,
    check_neutral,
    check_padding,
    check_shared_keys,
    check_spares_text,
    golden,
    inputs_of,
    span_roles,
)
from models import logits_of

from regaze.errors import BadParameterError, CompositionError
from regaze.interventions import EAH, GIFT, HeadKnockout
from regaze.interventions.controls import RandomSource
from regaze.interventions.controls.random_source import shifted
from regaze.interventions.eah import DensestHead, released_divisor
from regaze.kernels import AttentionEdit, HeadSource, attend
from regaze.toolkit.prompts.token_map import Role

#: Sinks of the random model: columns that receive more than an even share.
ACTS = EAH(threshold=1.0, relative=True)


def with_maps(maps):
    """q, k, v [B, H, P, P] of which head h has the causal map `maps` [B, H, P, P], and gives it as output."""
    length = maps.shape[-1]
    eye = torch.eye(length).expand(*maps.shape[:2], -1, -1)
    return maps.clamp_min(1e-30).log() * length**0.5, eye, eye


def rule(image, threshold, divisor=None):
    return DensestHead(image, torch.tensor([[threshold]]), divisor, 0, {})


# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    """Three heads of five tokens, two of head 1's three image tokens are sinks."""
    image = torch.tensor([[False, True, True, True, False]])
    sums = torch.tensor([[[0.0, 0.3, 0.2, 0.1, 0.0], [0.0, 1.2, 0.6, 0.1, 0.0], [0.0, 0.3, 0.2, 0.5, 0.0]]])
    seen = torch.tensor([[[4.0, 3.0, 2.0, 1.0, 0.0]]])
    assert rule(image, 0.21)(sums, seen).tolist() == [[1, 1, 1]]
    divisor = released_divisor(image, torch.ones(1, 5, dtype=torch.bool))
    assert divisor[0, 1:4].tolist() == [4, 3, 2]
    assert rule(image, 0.21, divisor)(sums, seen).tolist() == [[1, 1, 1]]  # the first of equals
    assert rule(image, 0.5)(sums, seen).tolist() == [[0, 1, 2]]  # strict
    assert rule(image, 0.6)(sums, seen).tolist() == [[0, 1, 2]]
    first = sums[:, [1, 0, 2]]
    assert rule(image, 0.21)(first, seen).tolist() == [[0, 0, 0]]
    assert rule(image, 0.21, divisor)(first, seen).tolist() == [[0, 1, 2]]


def test_hand_example_of_a_map():
    """After it all three heads have the map of head 1, whose columns receive 1.2, 0.6 and 0.1 from others."""
    rows = [[1.0], [0.5, 0.5], [0.3, 0.4, 0.3], [0.1, 0.4, 0.3, 0.2], [0.1, 0.4, 0.3, 0.1, 0.1]]
    dense = torch.tensor([row + [0.0] * (5 - len(row)) for row in rows])
    alone = torch.eye(5)
    maps = torch.stack([alone, dense, alone])[None]
    image = torch.tensor([[False, True, True, True, False]])
    edit = AttentionEdit(head_source=HeadSource(rule=rule(image, 0.21)))
    out = attend(*with_maps(maps), edit, is_causal=True)[0]
    torch.testing.assert_close(out, dense.expand(1, 3, 5, 5), rtol=0, atol=1e-6)


def test_golden_copy_map(shared):
    spec, tensors = golden(shared / "goldens", "eah", "copy_map")
    for name, case in spec["cases"].items():
        params, maps = case["params"], tensors[f"{name}/in/attn"]
        tokens = span_roles(maps.shape[-1], params["image_start"], params["image_end"])
        image, real = tokens.mask(Role.IMAGE), ~tokens.mask(Role.PAD)
        causal = torch.ones(maps.shape[2:]).tril().bool()
        assert torch.equal(maps, maps * causal)
        for released in (False, True):
            divisor = released_divisor(image, real) if released else None
            chooses = rule(image, params["threshold"], divisor)
            edit = AttentionEdit(head_source=HeadSource(rule=chooses))
            out = attend(*with_maps(maps), edit, is_causal=True)[0]
            source = params["source_head_release" if released else "source_head"]
            want = maps if source is None else maps[:, source : source + 1].expand_as(maps)
            torch.testing.assert_close(out, want, rtol=1e-5, atol=2e-6)
            if released:
                torch.testing.assert_close(out[:1], tensors[f"{name}/out/attn"][:1], rtol=1e-5, atol=2e-6)
    assert len(spec["cases"]) >= 4


def test_permuted_heads_permute_the_source():
    maps = torch.rand(2, 5, 12, 12, generator=torch.Generator().manual_seed(0)).tril()
    maps = maps / maps.sum(-1, keepdim=True)
    image = span_roles(12, 2, 9).mask(Role.IMAGE).expand(2, -1)
    seen = torch.arange(11.0, -1.0, -1.0)[None, None]
    sums = maps.sum(2) - maps.diagonal(0, 2, 3)
    order = torch.tensor([3, 0, 4, 2, 1])
    counts = ((sums / seen.clamp_min(1))[..., 2:9] > 0.1).sum(-1)
    assert all(len(set(row[row == row.max()].tolist())) == 1 for row in counts)
    one, other = (rule(image, 0.1)(x, seen)[:, 0] for x in (sums, sums[:, order]))
    best = counts.gather(1, one[:, None])
    assert torch.equal(counts[:, order].gather(1, other[:, None]), best)


# In a model -------------------------------------------------------------------------------------------


def test_batches_padding_choices_and_json(gaze):
    check_spares_text(gaze, ACTS)
    check_padding(gaze, ACTS)
    check_choices(gaze, ACTS)
    check_shared_keys(ACTS)
    check_neutral(gaze, EAH(threshold=1.0), EAH(threshold=2.0, as_released=True))
    check_json(EAH(threshold=0.01, layers=(1, 2), as_released=True))


def test_layers(gaze):
    check_layers(gaze, ACTS, {1}, rows="all")
    check_layers(gaze, EAH(threshold=1.0, relative=True, layers=(3, 4)), {3, 4}, rows="all")


def maps_of(gaze, method, inputs, edited=True):
    with gaze.using(method), gaze.recording(slices="all", rows="all", edited=edited) as record:
        gaze.model(**inputs)
    return record[0].slices


def test_all_heads_of_the_layer_have_one_map(gaze):
    """The map of one of them: its rows sum to 1, and the chosen head's output stays."""
    inputs = inputs_of(gaze, slice(0, 1))
    plain, lent = (maps_of(gaze, ACTS, inputs, edited)[1, 0] for edited in (False, True))
    torch.testing.assert_close(lent, lent[:1].expand_as(lent))
    torch.testing.assert_close(lent.sum(-1), torch.ones_like(lent[..., 0]))
    same = [(lent[head] - plain[head]).abs().max() < 1e-6 for head in range(len(plain))]
    assert sum(map(bool, same)) == 1


def test_the_answer_is_plain_and_a_threshold_of_nothing_edits_nothing(gaze):
    inputs = inputs_of(gaze, slice(0, 2))
    with gaze.using(ACTS), gaze.recording(slices="all", edited=True) as edited:
        gaze.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with gaze.using(ACTS), gaze.recording(slices="all") as plain:
        gaze.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    a, b = (record[0].slices[1] for record in (edited, plain))
    torch.testing.assert_close(a[:, :, 1:], b[:, :, 1:])
    with gaze.using(EAH(threshold=40.0, relative=True)):
        high = logits_of(gaze.model, inputs)
    torch.testing.assert_close(high, logits_of(gaze.model, inputs))


def test_a_row_that_runs_again_has_the_same_map(gaze):
    """GIFT runs the prompt's last row twice: its layers are edited, and in the layer of EAH it is EAH's."""
    inputs = inputs_of(gaze, slice(0, 1))
    weak = GIFT(alpha=1e-6, layers=(0, 3), saliency_layer=4)
    for method in (ACTS, RandomSource(ACTS)):
        with gaze.using(method):
            alone = logits_of(gaze.model, inputs, 1)
        with gaze.using(method, weak):
            torch.testing.assert_close(logits_of(gaze.model, inputs, 1), alone, rtol=1e-3, atol=1e-3)


def test_pairs(gaze):
    inputs = inputs_of(gaze, slice(0, 2))
    outputs = []
    for methods in ((ACTS, HeadKnockout(heads=((1, 2),))), (HeadKnockout(heads=((1, 2),)), ACTS), (ACTS,)):
        with gaze.using(*methods):
            outputs.append(logits_of(gaze.model, inputs))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)
    with gaze.using(ACTS, EAH()), pytest.raises(CompositionError, match="head_source"):
        logits_of(gaze.model, inputs)


def test_the_random_source_is_another_head(gaze):
    index = torch.tensor([[2, 2, 2], [0, 1, 2]])
    assert shifted(index, 1).tolist() == [[0, 0, 0], [0, 1, 2]]
    assert shifted(index, 2).tolist() == [[1, 1, 1], [0, 1, 2]]
    inputs = inputs_of(gaze, slice(0, 1))
    chosen, drawn = (maps_of(gaze, method, inputs)[1, 0, 0] for method in (ACTS, RandomSource(ACTS, seed=1)))
    assert not torch.allclose(chosen, drawn, atol=1e-3)
    with pytest.raises(BadParameterError, match="copies a head's map"):
        RandomSource(GIFT())


def test_a_bad_threshold():
    with pytest.raises(BadParameterError, match="threshold"):
        EAH(threshold=-0.1)


def test_the_weights_that_a_forward_returns_are_the_copied_ones(gaze):
    inputs = inputs_of(gaze, slice(0, 1))
    with gaze.using(ACTS):
        weights = gaze.model(**inputs, output_attentions=True).attentions[1]
    torch.testing.assert_close(weights, weights[:, :1].expand_as(weights))
