"""Every method on one and on two devices: the logits of the CPU, no wait of the host at layers or steps."""

from __future__ import annotations

import pytest
import torch
from device_checks import IMAGES, QUESTIONS, logits
from directions import ict_directions, nullu_directions, vti_directions
from models import SMALL_VAR
from standins import painted

from regaze.interventions import EAH, PAI, VISTA, EViT, HeadKnockout, MultiPassMethod, create_method
from regaze.interventions.controls import (
    NearTie,
    PlausibilityCut,
    RandomDirection,
    RandomHeads,
    RandomSource,
    Sharpen,
    UniformColumns,
)
from regaze.interventions.registry import BUILT_IN

HEADS = ((0, 0), (1, 3), (4, 1), (5, 2))


def relevance(image, text):
    """In the place of BLIP: the brighter a row of pixels, the more relevant."""
    return torch.linspace(0, 1, 16)[:, None].expand(16, 16), 0.5


PARAMETERS = {
    "adhh": {"heads": HEADS, "threshold": 0.1},
    "agla": {"relevance": relevance},
    "carve": {"layers": (2, 4)},
    "degf": {"generator": painted, "description_tokens": 3},
    "knockout": {"heads": HEADS},
    "mma": {"trained": True},
    "memvr": {"threshold": 0.3, "layers": (1, 4)},
    "moa": {"block": 8},
    "opera": {"num_beams": 2, "candidates": 2},
    "var": SMALL_VAR,
    "ict": {"directions": ict_directions()},
    "nullu": {"directions": nullu_directions()},
    "vti": {"directions": vti_directions()},
}
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
SEVERAL = ("carve", "degf", "opera")
ACTING = sorted(name for name in BUILT_IN if name not in SEVERAL)


def test_all_methods_are_here():
    several = {name for name in BUILT_IN if isinstance(method(name), MultiPassMethod)}
    assert several == set(BUILT_IN) - set(ACTING)


def method(name):
    return create_method(name, **PARAMETERS.get(name, {}))


@pytest.mark.parametrize("name", ACTING)
def test_a_method(placed, name):
    def run(gaze):
        with gaze.using(method(name)):
            return logits(gaze)

    placed.check(run, *READS.get(name, ()))


CONTROLS = [
    *(NearTie(mass=0.0, gap=2.0, steps="all"), PlausibilityCut(), Sharpen()),
    *(
        UniformColumns(PAI(gamma=1.0)),
        RandomHeads(HeadKnockout(heads=HEADS)),
        RandomDirection(VISTA()),
        RandomSource(EAH()),
    ),
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
    placed.check(lambda gaze: gaze.ask(IMAGES, QUESTIONS, method=method(name), max_new_tokens=3), waits=True)


def test_tokens_dropped_inside_the_vision_tower(placed):
    def run(gaze):
        tower, pixels = gaze.model.model.vision_tower, gaze.inputs(IMAGES, QUESTIONS)["pixel_values"]
        with EViT(keep_rate=0.5, layers=(1,)).applied(tower), torch.inference_mode():
            return tower(pixel_values=pixels).last_hidden_state

    placed.check(run)
