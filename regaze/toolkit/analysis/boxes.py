"""Bounding boxes of objects: reading COCO-style files, and overlap of boxes with the cells of a map."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regaze.errors import InputError, ShapeError
from regaze.reading import StrPath
from regaze.toolkit.prompts.geometry import Box, Geometry


@dataclass(frozen=True)
class LabelledBox:
    """An object in an image.

    Attributes:
        category: name of its class.
        box: left, upper, right and lower edge in pixels of the image; x to the right, y down, not rounded.
    """

    category: str
    box: Box


def read_boxes(path: StrPath) -> dict[str, tuple[LabelledBox, ...]]:
    """The boxes of a COCO-style file of instances, by the images' file names.

    The file is a JSON object with "images" (id, file_name), "annotations" (image_id, category_id, bbox as
    [x, y, width, height], iscrowd) and "categories" (id, name). Other keys are ignored, and so are crowds,
    whose boxes outline no single object. Images without boxes have an empty tuple.

    Raises:
        InputError: no such file, or another format; the message names the first wrong entry.
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
    boxes: dict[str, list[LabelledBox]] = {name: [] for name in names.values()}
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
        boxes[names[image]].append(LabelledBox(categories[category], (x, y, x + width, y + height)))
    return {name: tuple(found) for name, found in boxes.items()}


def boxes_of(objects: Sequence[LabelledBox], category: str) -> list[Box]:
    """All boxes of one category, in order."""
    return [each.box for each in objects if each.category == category]


def covered_share(boxes: Sequence[Box], geometry: Geometry, grid: tuple[int, int]) -> Tensor:
    """Share of each cell's area that lies in any of the boxes, [rows, columns] float64 in [0, 1].

    Boxes are rounded to whole pixels of the image. Padding counts as outside.

    Raises:
        ShapeError: a box that lies outside the image.
    """
    return geometry.to_cells(_inside(boxes, geometry), grid)


def holds_centre(
    boxes: Sequence[Box], geometry: Geometry, grid: tuple[int, int], tolerance: float = 0.0
) -> Tensor:
    """Whether the centre of each cell lies in one of the boxes, [rows, columns] bool.

    Args:
        boxes: a point on the right or lower edge is outside.
        tolerance: pixels by which each side of a box is moved outwards; the pointing game on photographs uses
            15.
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


def _get(entry: Mapping[str, Any], key: str, path: StrPath) -> Any:
    try:
        return entry[key]
    except (KeyError, TypeError):
        raise InputError(f"{str(path)!r} has an entry without {key!r}: {entry}") from None
