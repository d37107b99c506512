"""Methods that say their edits are fixed give the same objects in every step after the prompt."""

from __future__ import annotations

import pytest
import torch
from directions import pti_directions
from models import logits_of, picture, small_var

from regaze.interventions import (
    ADHH,
    EAH,
    GIFT,
    HGAI,
    MMA,
    PAI,
    PAINT,
    PTI,
    SPIN,
    VAF,
    VHR,
    AttnReal,
    FarSight,
    FastV,
    HeadKnockout,
    Intervention,
    MoA,
    PyramidDrop,
    SparseVLM,
)
from regaze.interventions.registry import BUILT_IN, method_class
from regaze.toolkit.model import plans

METHODS = (
    small_var(),
    GIFT(),
    PAI(as_released=True),
    VAF(),
    HGAI(),
    SPIN(kept=0.5),
    SPIN(kept=0.5, by="scores"),
    EAH(),
    FarSight(sigma=0.1),
    AttnReal(above=1.0),
    VHR(),
    ADHH(heads=((0, 0), (1, 3))),
    MoA(beta=0.2, block=8),
    MMA(trained=True),
    PAINT(as_released=True),
    HeadKnockout(heads=((1, 1), (0, 2))),
    FastV(remove=False),
    PyramidDrop(),
    SparseVLM(remove=False),
    PTI(directions=pti_directions()),
)


def test_they_are_all_here():
    known = [method_class(name) for name in BUILT_IN]
    fixed = {kind for kind in known if issubclass(kind, Intervention) and "fixed_edits" in vars(kind)}
    assert fixed == {type(method) for method in METHODS}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_edits_are_the_same_objects_in_every_step(monkeypatch, method, model, gaze):
    """Also where it is asked each time, in a batch of which one prompt has no image, under beam search."""
    inputs = gaze.inputs([[picture(1)], []], ["Is there a dog in the image?", "What is this?"])
    edits, own, steps = {}, type(method).edit, set()

    def edit(self, layer, step, context):
        found = own(self, layer, step, context)
        if step and not context.replaying:
            steps.add(step)
            assert edits.setdefault(layer, found) is found
        return found

    logits = {}
    for asked in (False, True):
        if asked:
            monkeypatch.setattr(plans, "keeps_edits", lambda callback: False)
            monkeypatch.setattr(type(method), "edit", edit)
        with gaze.using(method):
            logits[asked] = logits_of(model, inputs, 4)
    assert torch.equal(logits[True], logits[False])
    assert steps == {1, 2, 3}
    with gaze.using(method):
        edits.clear()
        model.generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False)
