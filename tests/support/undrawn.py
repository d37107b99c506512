"""Scenes with objects but without pixels, for what reads only the truth."""

from __future__ import annotations

import numpy as np

from regaze.demo import SceneObject
from regaze.demo.training.render import Rendered

_CORNERS = ((2, 2), (78, 2), (2, 78), (78, 78), (40, 40))


def scene_of(*categories: str, side: int = 30, scene_type: str = "kitchen") -> Rendered:
    """Up to five categories as squares of ``side`` pixels: in the four corners and the middle."""
    objects = tuple(
        SceneObject(name, (x, y, x + side, y + side))
        for name, (x, y) in zip(categories, _CORNERS, strict=False)
    )
    nothing = np.full((8, 8), -1)
    return Rendered(scene_type, objects, np.zeros((112, 112, 3), np.uint8), nothing, nothing)
