"""Every registered method with parameters with which it changes a random LLaVA of six layers.

A new method that does so with its defaults needs no line here.
"""

from __future__ import annotations

from typing import Any

import torch
from directions import ict_directions, nullu_directions, pti_directions, vti_directions
from models import SMALL_VAR
from standins import painted, spotted
from torch import Tensor

from regaze.interventions import Method, MultiPassMethod, create_method
from regaze.interventions.registry import BUILT_IN

HEADS = ((0, 0), (1, 3), (2, 1), (4, 2), (5, 1))


def brighter_below(image: Any, text: str) -> tuple[Tensor, float]:
    """In the place of BLIP: the lower a row of pixels, the more relevant."""
    return torch.linspace(0, 1, 16)[:, None].expand(16, 16), 0.5


PARAMETERS: dict[str, dict[str, Any]] = {
    "adhh": {"heads": HEADS, "threshold": 0.1},
    "agla": {"relevance": brighter_below},
    "attnreal": {"above": 1.0, "rho": 0.0},
    "cai": {"layers": (4, 5)},
    "carve": {"layers": (2, 4)},
    "degf": {"generator": painted, "description_tokens": 3},
    "farsight": {"sigma": 0.1},
    "flb": {"gamma": 2.0, "decay": 0.5},
    "halc": {"detector": spotted},
    "hgai": {"alpha": 1.0},
    "ict": {"directions": ict_directions()},
    "ilvad": {"tau": 1.0, "looks": 3, "layers": (1, 4), "alpha": 2.0},
    "knockout": {"heads": HEADS},
    "marine": {"detector": spotted, "threshold": 0.5},
    "memvr": {"threshold": 0.3, "layers": (1, 4)},
    "mma": {"trained": True},
    "moa": {"beta": 0.2, "block": 8},
    "nullu": {"directions": nullu_directions()},
    "opera": {"num_beams": 2, "candidates": 2},
    "pti": {"directions": pti_directions()},
    "ritual": {"alpha": 1.0},
    "sid": {"kept": 5},
    "sparc": {"alpha": 1.5, "tau": 0.1},
    "spin": {"kept": 0.5},
    "vaf": {"enhance": 1.5},
    "var": SMALL_VAR,
    "vcd": {"alpha": 0.5, "noise_step": 300},
    "vti": {"directions": vti_directions()},
}


def acting(name: str, **changes: Any) -> Method:
    """The method with these parameters."""
    return create_method(name, **{**PARAMETERS.get(name, {}), **changes})


#: Names of the methods that act inside of forwards, and of those that ask a model several times.
INSIDE = sorted(name for name in BUILT_IN if not isinstance(acting(name), MultiPassMethod))
SEVERAL = sorted({*BUILT_IN} - {*INSIDE})
