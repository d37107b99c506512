"""Fields of view: parts of an image around a box, from narrow to wide."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from regaze.interventions.detection.detections import Box

#: The part of an image that is looked at where a word is not found in it, in shares of its sides.
CENTRE = (0.2, 0.2, 0.8, 0.8)
#: Most by which the release's first field is narrower than the box.
_NARROWEST = 0.8


def growing_fields(box: Box, size: tuple[int, int], count: int, growth: float) -> tuple[Box, ...]:
    """The box times 1, 1 + growth, (1 + growth)^2 ... about its centre, cut at the edges of the image.

    Args:
        size: (width, height) of the image.
    """
    return tuple(_scaled(box, (1.0 + growth) ** number, size) for number in range(count))


def released_fields(box: Box, size: tuple[int, int], count: int, growth: float) -> tuple[Box, ...]:
    """As the release: the box times 1 - growth (at least 0.2), the box, and others, each about the last.

    A field that was cut at an edge of the image grows about its new centre.
    """
    fields = [_scaled(box, 1.0 - min(growth, _NARROWEST), size), box]
    while len(fields) < count:
        fields.append(_scaled(fields[-1], 1.0 + growth, size))
    return tuple(fields)


def crops(image: Image.Image, fields: Sequence[Box]) -> list[Image.Image]:
    """The parts of the image, each in the size of the image, so that all make as many tokens."""
    found = []
    for x0, y0, x1, y1 in fields:
        left, upper = min(int(x0), image.width - 1), min(int(y0), image.height - 1)
        right, lower = max(math.ceil(x1), left + 1), max(math.ceil(y1), upper + 1)
        part = image.crop((left, upper, right, lower))
        found.append(part.resize(image.size, Image.Resampling.BICUBIC))
    return found


def centre_of(size: tuple[int, int]) -> Box:
    """The middle of an image of `size` (width, height)."""
    width, height = size
    x0, y0, x1, y1 = CENTRE
    return x0 * width, y0 * height, x1 * width, y1 * height


def _scaled(box: Box, factor: float, size: tuple[int, int]) -> Box:
    x0, y0, x1, y1 = box
    across, down = (x1 - x0) * (factor - 1.0) / 2, (y1 - y0) * (factor - 1.0) / 2
    return max(0.0, x0 - across), max(0.0, y0 - down), min(size[0], x1 + across), min(size[1], y1 + down)
