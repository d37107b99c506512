"""Every method on one and on two devices: the logits of the CPU, no wait of the host at layers or steps."""

from __future__ import annotations

import pytest
import torch
from acting_methods import HEADS, INSIDE, SEVERAL, acting
from device_checks import IMAGES, QUESTIONS, logits

from regaze.interventions import EAH, PAI, SPIN, VISTA, EViT, FarSight, FastV, HeadKnockout
from regaze.interventions.controls import (
    NearTie,
    PlausibilityCut,
    RandomDirection,
    RandomHeads,
    RandomObjects,
    RandomSource,
    RandomTokens,
    Sharpen,
    UniformColumns,
    UniformSink,
)

#: Lines that may copy or wait more often, by method: measuring forwards read their prompts as any other;
#: what changes with the steps goes from one device to the other at each.
READS = {
    "avisc": ("toolkit/wrap.py",),
    "cai": (
        "copy between devices at regaze/interventions/cai.py",
        "copy between devices at regaze/toolkit/model/hidden_logits.py",
    ),
    "deco": ("copy between devices at regaze/toolkit/model/hidden_logits.py",),
    "vhr": ("toolkit/wrap.py", "regaze/interventions/vhr.py"),
    "vista": (
        "toolkit/wrap.py",
        "model/context.py",
        "copy between devices at regaze/interventions/vista.py",
    ),
    "memvr": (
        "copy between devices at regaze/interventions/memvr.py",
        "copy between devices at regaze/toolkit/model/hidden_logits.py",
    ),
    "only": ("copy between devices at regaze/toolkit/model/hidden_logits.py",),
    "sid": ("copy between devices at regaze/kernels/placement.py",),
    "sparc": ("copy between devices at regaze/kernels/placement.py",),
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_method(placed, name):
    def run(gaze):
        with gaze.using(acting(name)):
            return logits(gaze)

    placed.check(run, *READS.get(name, ()))


CONTROLS = [
    RandomObjects(acting("marine")),
    *(NearTie(mass=0.0, gap=2.0, steps="all"), PlausibilityCut(), Sharpen()),
    *(
        UniformColumns(PAI(gamma=1.0)),
        RandomHeads(HeadKnockout(heads=HEADS)),
        RandomDirection(VISTA()),
        RandomSource(EAH()),
        UniformSink(FarSight(sigma=0.1)),
        RandomTokens(FastV()),
    ),
    RandomHeads(SPIN(kept=0.5)),
]


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_a_control(placed, control):
    def run(gaze):
        with gaze.using(control):
            return logits(gaze)

    placed.check(run, *READS.get("vista" if isinstance(control, RandomDirection) else "", ()))


@pytest.mark.parametrize("name", SEVERAL)
def test_a_method_of_several_passes(placed, name):
    """Between their passes they read what they decide by."""
    placed.check(lambda gaze: gaze.ask(IMAGES, QUESTIONS, method=acting(name), max_new_tokens=3), waits=True)


def test_tokens_dropped_inside_the_vision_tower(placed):
    def run(gaze):
        tower, pixels = gaze.model.model.vision_tower, gaze.inputs(IMAGES, QUESTIONS)["pixel_values"]
        with EViT(keep_rate=0.5, layers=(1,)).applied(tower), torch.inference_mode():
            return tower(pixel_values=pixels).last_hidden_state

    placed.check(run)
