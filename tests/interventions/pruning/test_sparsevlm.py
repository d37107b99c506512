"""SparseVLM: raters and scores, against the authors' functions and forwards with masks of our own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_choices,
    check_full_forward,
    check_json,
    check_padding,
    check_shared_keys,
    check_spares_text,
    embedded,
    golden,
    inputs_of,
)
from models import logits_of, picture
from pruning import Stage, both_ways, stepwise

from regaze.errors import BadParameterError, UnsupportedModelError
from regaze.interventions import SparseVLM
from regaze.interventions.common.ranking import least_attended
from regaze.interventions.pruning.sparsevlm import (
    behind_images,
    position_prior,
    rated,
    raters,
    rotary_theta,
)
from regaze.toolkit.prompts.token_map import Role, TokenMap

SMALL = SparseVLM(kept=(30, 12, 5), layers=(0, 2, 3), heads=4)


def every(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def highest(scores, kept, alive):
    return least_attended(-scores, alive, torch.tensor([kept]))


def test_hand_example_of_raters():
    two = torch.tensor(2.0).log()
    image, text = torch.eye(2)[None], torch.tensor([[[two, 0.0], [0.0, 0.0], [0.0, two]]])
    assert raters(image, text, every(1, 2), every(1, 3)).tolist() == [[True, False, True]]
    assert raters(image, text, every(1, 2), every(1, 3), block=1).tolist() == [[True, False, True]]
    # Padding of images and text does not count; where all are alike, all rate.
    padded = torch.nn.functional.pad(text, (0, 0, 0, 1), value=9.0)
    words, images = torch.tensor([[True, True, True, False]]), torch.tensor([[True, True, False]])
    given = torch.nn.functional.pad(image, (0, 0, 0, 1), value=9.0)
    assert raters(given, padded, images, words).tolist() == [[True, False, True, False]]
    assert raters(image, torch.zeros(1, 3, 2), every(1, 2), every(1, 3)).tolist() == [[True] * 3]


def test_the_prior_turns_negative_at_the_published_distance():
    prior = position_prior(torch.arange(2000), 128)
    torch.testing.assert_close(prior[0], torch.tensor(2.0 / 128**0.5 * 64))
    assert int((prior < 0).int().argmax()) == 1707


def test_rotary_positions_are_those_of_the_layer():
    kinds = {"sliding_attention": {"rope_theta": 1e4}, "full_attention": {"rope_theta": 1e6}}
    config = SimpleNamespace(rope_parameters=kinds, layer_types=["sliding_attention", "full_attention"])
    assert [rotary_theta(config, layer) for layer in (0, 1)] == [1e4, 1e6]
    assert rotary_theta(SimpleNamespace(rope_parameters={"rope_theta": 5e5}), 1) == 5e5
    with pytest.raises(UnsupportedModelError, match=r"rotary positions alone give.*set prior=False"):
        rotary_theta(SimpleNamespace(), 0)


def test_scores_are_of_the_best_heads_and_the_rating_rows():
    weights = torch.tensor([[[[0.1, 0.2], [0.9, 0.9]], [[0.3, 0.1], [0.0, 0.0]], [[0.0, 0.1], [0.0, 0.0]]]])
    rows = torch.tensor([[True, False]])
    torch.testing.assert_close(rated(weights, rows, 2), torch.tensor([[0.2, 0.15]]))
    torch.testing.assert_close(rated(weights, rows, 14), torch.tensor([[0.4 / 3, 0.4 / 3]]))


def test_golden_raters_and_first_choice_of_version_1(shared):
    """What is merged, and what follows from merged tokens, is not offered here."""
    spec, tensors = golden(shared / "goldens", "sparsevlm", "prune_v1")
    for name, case in spec["cases"].items():
        params, embeds = case["params"], tensors[f"{name}/in/embeds"]
        start, count = params["before"], params["image_tokens"]
        image, text = embeds[:, start : start + count], embeds[:, start + count :]
        found = raters(image, text, every(1, count), every(1, text.shape[1]))
        assert torch.equal(found[0].nonzero().flatten(), tensors[f"{name}/out/raters"].long())
        scores = rated(tensors[f"{name}/in/attention_2"], found, params["heads"])
        kept = highest(scores, params["kept"][0], every(1, count))[0]
        got = tensors[f"{name}/out/hidden_2"][:, start : start + params["kept"][0]]
        torch.testing.assert_close(got, image[:, kept])


def test_golden_version_2(shared):
    spec, tensors = golden(shared / "goldens", "sparsevlm", "prune_v2")
    for name, case in spec["cases"].items():
        params, embeds = case["params"], tensors[f"{name}/in/embeds"]
        start, count = params["before"], params["image_tokens"]
        image, text = embeds[:, start : start + count], embeds[:, start + count :]
        found = raters(image, text, every(1, count), every(1, text.shape[1]))
        assert torch.equal(found[0].nonzero().flatten(), tensors[f"{name}/out/raters"].long())
        left = torch.arange(start, start + count)
        rows = torch.arange(start + count, embeds.shape[1])
        for layer, kept in zip(params["layers"], params["kept"], strict=True):
            prior = position_prior(rows[:, None] - left, params["head_dim"])
            weights = tensors[f"{name}/in/attention_{layer}"] / prior
            left = left[highest(rated(weights, found, 14), kept, every(1, len(left)))[0]]
            stay = torch.cat([torch.arange(start), left, rows])
            assert torch.equal(tensors[f"{name}/out/positions_{layer}"][0].long(), stay)
            torch.testing.assert_close(tensors[f"{name}/out/hidden_{layer}"], embeds[:, stay])


def test_published_budgets_and_layers():
    method, tokens = SparseVLM(), torch.tensor([576, 288])

    class Model:
        num_layers = 32

    assert method.behind(32) == (2, 6, 15)
    assert method.behind(40) == (3, 8, 19)
    assert method.behind(6) == (0, 0, 2)
    stages = {layer: kept.tolist() for layer, kept in method.stages(Model, tokens).items()}
    assert stages == {3: [300, 150], 7: [200, 100], 16: [118, 59]}
    stages = SparseVLM(kept=(9, 5, 2)).stages(Model, tokens)
    assert [kept.tolist() for kept in stages.values()] == [[9, 9], [5, 5], [2, 2]]


def test_the_text_behind_the_last_image():
    roles = torch.tensor([[2, 3, 5, 3, 4, 5, 6, 0], [1, 1, 2, 2, 5, 5, 6, 0]])
    assert behind_images(TokenMap.from_roles(roles)).int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 0], [0] * 8]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("prior", [True, False])
def test_against_forwards_with_masks(model, gaze, images, prior):
    inputs = gaze.inputs([[picture(n) for n in range(images)]], ["Is there a dog in the image?"])
    given = {name: value for name, value in inputs.items() if name != "position_ids"}
    tokens = gaze.tokens(inputs)
    image, text = tokens.columns(Role.IMAGE), behind_images(tokens)[0].nonzero().flatten()
    embeds = embedded(model, given, inputs["input_ids"][:, :0])
    found = raters(embeds[:, image], embeds[:, text], every(1, len(image)), every(1, len(text)))
    assert 0 < int(found.sum()) < len(text)

    def score(weights, columns):
        weights = weights[:, text][..., columns]  # 0 for those that nobody sees
        if prior:
            weights = weights / position_prior(text[:, None] - columns, 32, 500000.0)
        return rated(weights[None], found, 4)[0]

    method = SparseVLM(kept=SMALL.kept, layers=SMALL.layers, heads=4, prior=prior)
    logits, keys = both_ways(gaze, inputs, method)
    stages = [
        Stage(layer + 1, kept, layer, score) for layer, kept in zip(method.layers, method.kept, strict=True)
    ]
    want, _ = stepwise(given, logits.argmax(-1).T, stages)
    assert_same_scores(logits, want)
    rest = inputs["input_ids"].shape[1] + 3 - len(image)
    assert keys == [rest + n for n in (len(image), 30, 30, 12, 5, 5)]


def test_a_batch(gaze):
    logits, _ = both_ways(gaze, inputs_of(gaze), SMALL)
    assert not logits.isnan().any()


def test_as_every_method(gaze):
    method = SparseVLM(kept=SMALL.kept, layers=SMALL.layers)
    check_spares_text(gaze, method)
    check_padding(gaze, method)
    check_full_forward(gaze, method)
    check_choices(gaze, method)
    check_shared_keys(SparseVLM(kept=(5, 3), layers=(1, 2)))


def test_as_many_as_there_are_change_nothing(model, gaze):
    inputs = inputs_of(gaze)
    plain = logits_of(model, inputs)
    with gaze.using(SparseVLM(kept=(128, 128, 128))):
        assert torch.equal(logits_of(model, inputs), plain)
    check_json(SparseVLM(budget=96, layers=(1, 2), kept=(5, 3), heads=7, prior=False, remove=False))


def test_bad_parameters(gaze):
    with pytest.raises(BadParameterError, match="a number for each of the 3 layers"):
        SparseVLM(kept=(5,))
    with pytest.raises(BadParameterError, match="budget must be"):
        SparseVLM(budget=100)
    with (
        gaze.using(SparseVLM(layers=(1, 2, 5))),
        pytest.raises(BadParameterError, match=r"before layer 6: choose from 1\.\.5"),
    ):
        gaze.model(**inputs_of(gaze, slice(0, 1)))
