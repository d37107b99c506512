"""FastV: which tokens it keeps, against forwards with masks of our own; removing is hiding."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_batch,
    check_choices,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    check_shared_keys,
    check_spares_text,
    golden,
    inputs_of,
)
from models import logits_of, picture
from pruning import Stage, both_ways, last_row, stepwise

from regaze.errors import BadParameterError
from regaze.interventions import FastV
from regaze.interventions.common.ranking import least_attended


def highest(row, kept):
    """Columns of the highest weights of [B, N], as the method chooses them."""
    exist = torch.ones_like(row, dtype=torch.bool)
    return least_attended(-row, exist, torch.full((len(row),), kept)).nonzero()[:, 1].view(len(row), -1)


def test_hand_example():
    heads = torch.tensor([[0.10, 0.02, 0.06, 0.01, 0.05, 0.04], [0.06, 0.04, 0.02, 0.03, 0.05, 0.08]])
    assert FastV(dropped=2 / 3).count(torch.tensor([6])).tolist() == [2]
    assert highest(heads.mean(0)[None], 2).tolist() == [[0, 5]]


def test_halves_are_rounded_to_even_and_a_number_can_be_given():
    assert FastV().count(torch.tensor([5, 7, 576, 0])).tolist() == [2, 4, 288, 0]
    assert FastV(dropped=0.75).count(torch.tensor([576])).tolist() == [144]
    assert FastV(kept=50).count(torch.tensor([576, 64])).tolist() == [50, 50]


@pytest.mark.parametrize("name", ["prune", "mask"])
def test_goldens(shared, name):
    """Every sample chooses for itself, as `own_choice` says; the release takes the first one's for all."""
    spec, tensors = golden(shared / "goldens", "fastv", name)
    for case, about in spec["cases"].items():
        params, attention = about["params"], tensors[f"{case}/in/attention"]
        start, count = params["image_start"], params["image_tokens"]
        if name == "prune":
            kept = FastV(dropped=params["dropped_share"]).count(torch.tensor([count]))
            assert kept.tolist() == [params["kept"]]
        chosen = start + highest(attention.mean(1)[:, -1, start : start + count], params["kept"])
        assert torch.equal(chosen, tensors[f"{case}/out/own_choice"].long())
        gone = torch.zeros(attention.shape[-1], dtype=torch.bool)
        gone[start : start + count] = True
        gone[chosen[0]] = False
        if name == "mask":
            before, after = (tensors[f"{case}/out/visible_{part}"][0].bool() for part in ("before", "after"))
            assert torch.equal(after, before & ~gone)
        elif about["kind"] == "paper":
            left = (~gone).nonzero().flatten()
            assert torch.equal(tensors[f"{case}/out/positions"][0].long(), left)
            assert torch.equal(tensors[f"{case}/out/hidden"], tensors[f"{case}/in/hidden"][:, left])
    assert len(spec["cases"]) >= 2


@pytest.mark.parametrize(("dropped", "first_layer"), [(0.5, 2), (0.9, 1), (0.25, 5)])
@pytest.mark.parametrize("images", [1, 2])
def test_against_forwards_with_masks(gaze, dropped, first_layer, images):
    inputs = gaze.inputs([[picture(n) for n in range(images)]], ["Is there a dog in the image?"])
    logits, keys = both_ways(gaze, inputs, FastV(dropped=dropped, first_layer=first_layer))
    given = {name: value for name, value in inputs.items() if name != "position_ids"}
    kept = round(64 * images * (1 - dropped))
    stage = Stage(first_layer, kept, first_layer - 1, last_row)
    want, _ = stepwise(given, logits.argmax(-1).T, [stage])
    assert_same_scores(logits, want)
    whole = inputs["input_ids"].shape[1] + 3
    assert keys == [whole] * first_layer + [whole - 64 * images + kept] * (6 - first_layer)


def test_of_a_batch_the_layers_have_as_many_rows_as_the_sample_that_keeps_most(gaze):
    logits, keys = both_ways(gaze, inputs_of(gaze), FastV(kept=20))
    lengths = inputs_of(gaze)["attention_mask"].sum(1)
    text = lengths - torch.tensor([64, 128, 0])
    assert keys[2:] == [int((text + torch.tensor([20, 20, 0])).max()) + 3] * 4
    assert not logits.isnan().any()


@pytest.mark.parametrize("remove", [True, False])
def test_as_every_method(gaze, remove):
    method = FastV(dropped=0.8, remove=remove)
    check_spares_text(gaze, method)
    check_padding(gaze, method)
    check_full_forward(gaze, method)
    check_choices(gaze, method)
    check_shared_keys(FastV(kept=3, remove=remove))


def test_neutral_strength_and_json(model, gaze):
    check_neutral(gaze, FastV(dropped=0.0), FastV(dropped=0.0, remove=False))
    check_json(FastV(kept=4, dropped=0.25, first_layer=3, remove=False, rechoose=True))
    inputs = inputs_of(gaze)
    plain = logits_of(model, inputs)
    with gaze.using(FastV(kept=128)):
        assert torch.equal(logits_of(model, inputs), plain)


def test_choosing_anew_at_each_step(gaze):
    """Each step by a forward in which only its own row's choice is seen by that row."""
    method, inputs = FastV(dropped=0.8, remove=False, rechoose=True), inputs_of(gaze, slice(0, 1))
    check_batch(gaze, method)
    with gaze.using(method), gaze.recording(slices="image", edited=True) as record:
        logits_of(gaze.model, inputs, 4)
    with gaze.using(FastV(dropped=0.8, remove=False)), gaze.recording(slices="image", edited=True) as once:
        logits_of(gaze.model, inputs, 4)
    for traces, changes in ((record, True), (once, False)):
        slices = traces[0].slices  # [layers, 1, heads, steps, N]
        seen = slices[2:, 0].amax((0, 1)) > 0
        assert seen.sum(1).tolist() == [13] * 4
        wanted = highest(slices[1, 0].mean(0), 13)
        rows = range(4) if changes else [0]
        for row in rows:
            assert seen[row].nonzero().flatten().tolist() == wanted[row].tolist()
        assert bool((seen != seen[:1]).any()) == changes


def test_parameters_that_do_not_go_together_or_do_not_exist(gaze):
    with pytest.raises(BadParameterError, match="set remove=false with rechoose=true"):
        FastV(rechoose=True)
    with pytest.raises(BadParameterError, match="first_layer must be int > 0"):
        FastV(first_layer=0)
    with (
        gaze.using(FastV(first_layer=6)),
        pytest.raises(BadParameterError, match=r"before layer 6: choose from 1\.\.5"),
    ):
        gaze.model(**inputs_of(gaze, slice(0, 1)))
