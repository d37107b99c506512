"""PyramidDrop: stages, measured in the layer that is about to run, against forwards with our own masks."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_choices,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    check_shared_keys,
    check_spares_text,
    inputs_of,
)
from models import picture
from pruning import Stage, both_ways, last_row, stepwise

from regaze.errors import BadParameterError
from regaze.interventions import PyramidDrop
from regaze.interventions.pruning.base import scaled_layers


def test_the_published_stages_of_a_7b_model():
    class Model:
        num_layers = 32

    stages = PyramidDrop().stages(Model, torch.tensor([576, 577]))
    assert {layer: kept.tolist() for layer, kept in stages.items()} == {
        8: [288, 288],
        16: [144, 144],
        24: [72, 72],
    }


def test_stages_of_other_depths():
    assert scaled_layers((8, 16, 24), 32, 40) == (10, 20, 30)
    assert scaled_layers((8, 16, 24), 32, 6) == (2, 3, 5)
    assert scaled_layers((8, 16, 24), 32, 2) == (1, 1, 1)  # the last stage counts

    class Model:
        num_layers = 2

    assert PyramidDrop().stages(Model, torch.tensor([64]))[1].tolist() == [8]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("layers", [None, (1, 2, 5)])
def test_against_forwards_with_masks(gaze, images, layers):
    inputs = gaze.inputs([[picture(n) for n in range(images)]], ["Is there a dog in the image?"])
    logits, keys = both_ways(gaze, inputs, PyramidDrop(layers=layers))
    given = {name: value for name, value in inputs.items() if name != "position_ids"}
    counts = [32 * images, 16 * images, 8 * images]
    stages = [
        Stage(layer, kept, layer, last_row) for layer, kept in zip(layers or (2, 3, 5), counts, strict=True)
    ]
    want, _ = stepwise(given, logits.argmax(-1).T, stages)
    assert_same_scores(logits, want)
    whole = inputs["input_ids"].shape[1] + 3
    left = [whole - 64 * images + kept for kept in counts]
    by_layer = [
        whole if layer < stages[0].layer else left[sum(layer >= stage.layer for stage in stages) - 1]
        for layer in range(6)
    ]
    assert keys == by_layer


def test_a_batch(gaze):
    logits, _ = both_ways(gaze, inputs_of(gaze), PyramidDrop())
    assert not logits.isnan().any()


def test_as_every_method(gaze):
    method = PyramidDrop()
    check_spares_text(gaze, method)
    check_padding(gaze, method)
    check_full_forward(gaze, method)
    check_choices(gaze, method)
    check_shared_keys(PyramidDrop(layers=(2, 4), kept=(0.5, 0.25)))


def test_neutral_strength_and_json(gaze):
    check_neutral(gaze, PyramidDrop(kept=(1.0, 1.0, 1.0)))
    check_json(PyramidDrop(layers=(3, 1), kept=(0.5, 0.2), remove=False))


def test_bad_parameters(gaze):
    with pytest.raises(BadParameterError, match="a share for each of the 3 layers"):
        PyramidDrop(kept=(0.5,))
    with pytest.raises(BadParameterError, match="a share for each of the 1 layers"):
        PyramidDrop(layers=(2,))
    with (
        gaze.using(PyramidDrop(layers=(0, 2, 3))),
        pytest.raises(BadParameterError, match=r"before layer 0: choose from 1\.\.5"),
    ):
        gaze.model(**inputs_of(gaze, slice(0, 1)))
