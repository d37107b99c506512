"""Callbacks that edit what parts of layers give: outputs of MLPs, in the language model and the tower."""

from __future__ import annotations

import pytest
import torch
from models import logits_of, picture

from regaze.errors import CompositionError
from regaze.toolkit.model.callback import Callback


class Seen(Callback):
    """Notes the shapes that it is shown."""

    needs_pixels = True

    def __init__(self, *inactive):
        self.inactive, self.mlps, self.tower = frozenset(inactive), [], []

    def edit_mlp(self, layer, hidden, context):
        self.mlps.append((layer, context.step, tuple(hidden.shape)))
        return hidden

    def edit_vision_mlp(self, block, hidden, context):
        self.tower.append((block, tuple(hidden.shape)))
        return hidden


def test_the_tower_is_shown_once_per_image_and_the_layers_at_every_step(model, gaze):
    inputs = gaze.inputs([[picture(1), picture(2)], None], ["What?", "Where is the dog?"])
    plain, seen = logits_of(model, inputs, tokens=3), Seen()
    with gaze.using(seen):
        assert torch.equal(logits_of(model, inputs, tokens=3), plain)
    assert seen.tower == [(block, (2, 65, 192)) for block in range(4)]
    length = inputs["input_ids"].shape[1]
    lengths = {0: length, 1: 1, 2: 1}
    assert seen.mlps == [(layer, s, (2, n, 192)) for s, n in lengths.items() for layer in range(6)]


def test_what_is_inactive_is_not_called(model, gaze):
    seen = Seen("edit_mlp")
    with gaze.using(seen):
        logits_of(model, gaze.inputs([picture(1)], ["What?"]), tokens=2)
    assert not seen.mlps
    assert len(seen.tower) == 4


def test_two_editors_of_one_output_are_refused_if_both_are_active(model, gaze):
    inputs = gaze.inputs([picture(1)], ["What?"])
    with (
        gaze.using(Seen(), Seen()),
        pytest.raises(CompositionError, match="Seen and Seen: each edits the outp"),
    ):
        model(**inputs)
    one, other = Seen("edit_mlp"), Seen("edit_vision_mlp")
    with gaze.using(one, other):
        model(**inputs)
    assert len(one.tower) == 4
    assert len(other.mlps) == 6
