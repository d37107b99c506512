"""Boxes around things: reading them from COCO-style files, and laying them over a map's cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regaze.errors import InputError, ShapeError
from regaze.toolkit.prompts.geometry import Box, Geometry


@dataclass(frozen=True)
class LabelledBox:
    """A thing in an image.

    Attributes:
        category: its name. box: left, upper, right and lower edge in pixels of the image; x to the right, y
            down, not rounded.
    """

    category: str
    box: Box


def read_boxes(path: str | Path) -> dict[str, tuple[LabelledBox, ...]]:
    """The boxes of a COCO-style file of instances, by the images' file names.

    The file is a JSON object with "images" (id, file_name), "annotations" (image_id, category_id, bbox as
    [x, y, width, height], iscrowd) and "categories" (id, name); other keys are passed over, and so are boxes
    of crowds, which outline no single thing. Images without boxes are there, with none.

    Raises:
        InputError: no such file, or one of another form; the message names the first entry that does not fit.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file {str(path)!r}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a readable JSON file: {error}") from None
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        raise InputError(
            f"{str(path)!r} is not a COCO-style file: it must be an object with images, annotations and "
            "categories"
        )
    names = {_get(entry, "id", path): _get(entry, "file_name", path) for entry in content["images"]}
    categories = {_get(entry, "id", path): _get(entry, "name", path) for entry in content["categories"]}
    found: dict[str, list[LabelledBox]] = {name: [] for name in names.values()}
    for entry in content["annotations"]:
        if entry.get("iscrowd"):
            continue
        image, category = _get(entry, "image_id", path), _get(entry, "category_id", path)
        box = _get(entry, "bbox", path)
        if image not in names or category not in categories or len(box) != 4:
            raise InputError(
                f"{str(path)!r} has an annotation of an unknown image or category, or whose bbox is not "
                f"[x, y, width, height]: {entry}"
            )
        x, y, width, height = (float(number) for number in box)
        found[names[image]].append(LabelledBox(categories[category], (x, y, x + width, y + height)))
    return {name: tuple(boxes) for name, boxes in found.items()}


def boxes_of(things: Sequence[LabelledBox], category: str) -> list[Box]:
    """The boxes of one category, in order; there may be several, or none."""
    return [thing.box for thing in things if thing.category == category]


def covered_share(boxes: Sequence[Box], geometry: Geometry, grid: tuple[int, int]) -> Tensor:
    """How much of each cell's area lies in any of the boxes, [rows, columns] float64 in [0, 1].

    Boxes are rounded to whole pixels of the image. Padding counts as outside.

    Raises:
        ShapeError: a box that does not meet the image.
    """
    return geometry.to_cells(_inside(boxes, geometry), grid)


def holds_centre(
    boxes: Sequence[Box], geometry: Geometry, grid: tuple[int, int], tolerance: float = 0.0
) -> Tensor:
    """Whether the centre of each cell lies in one of the boxes, [rows, columns] bool.

    Args:
        boxes: right and lower edges belong to no box.
        tolerance: pixels by which boxes grow on every side before; the pointing game on photographs uses 15.
    """
    inside = torch.zeros(grid, dtype=torch.bool)
    for row in range(grid[0]):
        for column in range(grid[1]):
            cell = geometry.cell_box(row, column, grid)
            if cell is None:
                continue
            x, y = (cell[0] + cell[2]) / 2, (cell[1] + cell[3]) / 2
            inside[row, column] = any(
                left - tolerance <= x < right + tolerance and top - tolerance <= y < bottom + tolerance
                for left, top, right, bottom in boxes
            )
    return inside


def _inside(boxes: Sequence[Box], geometry: Geometry) -> Tensor:
    """[H, W] bool, the image's pixels in any of the boxes."""
    width, height = geometry.original
    inside = torch.zeros(height, width, dtype=torch.bool)
    for box in boxes:
        left, top, right, bottom = (round(edge) for edge in box)
        if left >= right or top >= bottom or right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise ShapeError(f"the box {tuple(box)} does not meet the image of {width} x {height} pixels")
        inside[max(top, 0) : bottom, max(left, 0) : right] = True
    return inside


def _get(entry: Mapping[str, Any], key: str, path: str | Path) -> Any:
    try:
        return entry[key]
    except (KeyError, TypeError):
        raise InputError(f"{str(path)!r} has an entry without {key!r}: {entry}") from None
