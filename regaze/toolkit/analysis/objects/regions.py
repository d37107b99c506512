"""Regions of a map over an image's pixels: the strongest one, points in and outside of it, its box."""

from __future__ import annotations

import torch
from scipy import ndimage
from torch import Tensor

from regaze.errors import BadParameterError, InputError
from regaze.toolkit.analysis.flow import Flow
from regaze.toolkit.prompts.geometry import Box, Geometry
from regaze.toolkit.prompts.token_map import View


def pixel_map(flow: Flow, size: tuple[int, int], row: int = -1, sample: int = 0, image: int = 0) -> Tensor:
    """The flow of a row over the pixels of an image, [H, W] float64; tiles and thumbnails are added up.

    Args:
        size: (width, height) of the image. row, sample: as for `Flow.image_map`. image: its number.

    Raises:
        InputError: it is not known which part of the image its tokens show.
    """
    shown = [
        (number, view)
        for number, view in enumerate(flow.tokens.views[sample])
        if view.image == image and view.box is not None and all(view.grid)
    ]
    if not shown:
        raise InputError("it is not known which part of the image each of its tokens shows: there is no map")
    maps = [_placed(view, size).to_pixels(flow.image_map(row, sample, number)) for number, view in shown]
    return torch.stack(maps).sum(0)


def _placed(view: View, size: tuple[int, int]) -> Geometry:
    """How the image lies under a view's grid: a cell is one seen pixel."""
    assert view.box is not None
    left, upper, right, lower = view.box
    rows, columns = view.grid
    scale = columns / ((right - left) * size[0]), rows / ((lower - upper) * size[1])
    return Geometry(size, (columns, rows), scale, (-left * size[0] * scale[0], -upper * size[1] * scale[1]))


def main_region(heat: Tensor, threshold: float, top: float | None = None) -> Tensor:
    """The largest connected region of a map [H, W] that is at least `threshold` of its top, [H, W] bool.

    Pixels are connected by their sides. The region is empty where the map is nowhere positive.

    Args:
        threshold: in (0, 1]. top: what counts as the top; None: the map's largest value.
    """
    if not 0 < threshold <= 1:
        raise BadParameterError(f"threshold is a share of the map's top in (0, 1], got {threshold}")
    top = float(heat.max()) if top is None else top
    if top <= 0:
        return torch.zeros_like(heat, dtype=torch.bool)
    labels, count = ndimage.label((heat >= threshold * top).numpy())
    if not count:
        return torch.zeros_like(heat, dtype=torch.bool)
    numbers = torch.from_numpy(labels).long()
    areas = torch.bincount(numbers.flatten(), minlength=count + 1)
    return numbers == 1 + int(areas[1:].argmax())


def prompt_points(heat: Tensor, region: Tensor, pairs: int = 1) -> tuple[Tensor, Tensor]:
    """Points for a segmenter: the strongest in the region, each with the weakest outside of it.

    Further points of a kind keep away from earlier ones by half the side of a square of the region's area
    divided among the pairs; where no pixel is left there are fewer.

    Args:
        heat, region: [H, W], the region bool and not empty.

    Returns:
        [n, 2] x and y in pixels (of pixels' centres), and [n] int64: 1 for the object, 0 for what is not.
    """
    apart = 0.5 * (float(region.sum()) / pairs) ** 0.5
    inside = _spread(heat, region, pairs, apart)
    outside = _spread(-heat, ~region, pairs, apart)
    labels = torch.tensor([1] * len(inside) + [0] * len(outside))
    return torch.tensor(inside + outside, dtype=torch.float64).view(-1, 2), labels


def _spread(heat: Tensor, allowed: Tensor, count: int, apart: float) -> list[tuple[float, float]]:
    """The strongest pixels (x, y) of `allowed`, none nearer than `apart` to one before it."""
    rows, columns = (torch.arange(n, dtype=torch.float64) + 0.5 for n in heat.shape)
    left, points = allowed.clone(), list[tuple[float, float]]()
    while len(points) < count and bool(left.any()):
        row, column = divmod(int(heat.masked_fill(~left, -torch.inf).argmax()), heat.shape[1])
        points.append((column + 0.5, row + 0.5))
        near = (rows[:, None] - rows[row]) ** 2 + (columns - columns[column]) ** 2 <= apart**2
        left &= ~near
    return points


def contrast(heat: Tensor, region: Tensor) -> float:
    """How far a region stands out of a map: 1 - (mean outside) / (mean inside), at least 0."""
    inside, outside = heat[region], heat[~region]
    if not len(outside) or float(inside.mean()) <= 0:
        return 0.0
    return max(0.0, 1 - float(outside.mean()) / float(inside.mean()))


def bounding_box(region: Tensor) -> Box:
    """Left, upper, right and lower edge of a region [H, W] bool that is not empty, in pixels."""
    rows, columns = (region.any(axis).nonzero().flatten() for axis in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)
