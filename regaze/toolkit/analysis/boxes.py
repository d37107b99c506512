"""Bounding boxes of objects: reading COCO-style files, and overlap of boxes with the cells of a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import fspath
from typing import Annotated, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor

from regaze.errors import InputError, ShapeError
from regaze.reading import LARGE_BYTES, StrPath, parse_json, read_text
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


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True)


class _Image(_Checked):
    id: int | str
    file_name: str


class _Category(_Checked):
    id: int | str
    name: str


class _Annotation(_Checked):
    image_id: int | str
    category_id: int | str
    iscrowd: bool | int = 0
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]


class _Instances(_Checked):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_boxes(path: StrPath) -> dict[str, tuple[LabelledBox, ...]]:
    """The boxes of a COCO-style file of instances, by the images' file names.

    The file is a JSON object with "images" (id, file_name), "annotations" (image_id, category_id, bbox as
    [x, y, width, height], iscrowd) and "categories" (id, name). Other keys are ignored, and so are crowds,
    whose boxes outline no single object. Images without boxes have an empty tuple.

    Raises:
        InputError: it cannot be read, or has another format; the message names the first wrong entry.
    """
    path = fspath(path)
    content = parse_json(read_text(path, max_bytes=LARGE_BYTES), path, max_bytes=LARGE_BYTES)
    try:
        file = _Instances.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(f"{path} is not a COCO-style file: {where}: {first['msg']}") from None
    images = _by_id(file.images, "images", path)
    categories = _by_id(file.categories, "categories", path)
    boxes: dict[str, list[LabelledBox]] = {image.file_name: [] for image in file.images}
    if len(boxes) < len(images):
        raise InputError(f"{path}: two images have the same file_name")
    for number, entry in enumerate(file.annotations):
        if entry.image_id not in images or entry.category_id not in categories:
            raise InputError(f"{path}: annotations.{number} is of an unknown image or category")
        if entry.iscrowd:
            continue
        x, y, width, height = entry.bbox
        box = LabelledBox(categories[entry.category_id].name, (x, y, x + width, y + height))
        boxes[images[entry.image_id].file_name].append(box)
    return {name: tuple(found) for name, found in boxes.items()}


_Entry = TypeVar("_Entry", _Image, _Category)


def _by_id(entries: Sequence[_Entry], name: str, path: StrPath) -> dict[int | str, _Entry]:
    known: dict[int | str, _Entry] = {}
    for entry in entries:
        if known.setdefault(entry.id, entry) is not entry:
            raise InputError(f"{path}: {name} has the id {entry.id!r} twice")
    return known


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
