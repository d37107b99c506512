"""Instance-level questions of R-Bench: subject and object marked on the picture and in the question.

The subject is red, the object green. Boxes are outlines of four pixels; masks are laid over the picture.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from regaze.errors import InputError
from regaze.eval.files import cache_folder
from regaze.reading import open_regular
from regaze.toolkit.prompts.images import open_image
from regaze.writing import make_folder, replacing

BOX, MASK = "box", "mask"
_OUTLINE = 4  # pixels
#: Value in a file of masks -> colour, and opacity of 255.
_MASKS = {1: (250, 0, 45), 2: (100, 250, 0)}
_OPACITY = 120

Box = Sequence[float]


def mark_text(question: str, subject: str, thing: str, how: str) -> str:
    """The question with "in red bounding box" (or mask) after each occurrence of the subject, as released.

    Occurrences are of the lower-case text anywhere, also within words and in what was put in for the subject.
    """
    noun = "mask" if how == MASK else "bounding box"
    for name, colour in ((subject.lower(), "red"), (thing.lower(), "green")):
        question = question.replace(name, f"{name} in {colour} {noun}")
    return question


def marked_copy(image: Path, subject: Box, thing: Box, mask: Path | None) -> Path:
    """File of the image with boxes (fractions of width and height) or masks; made once, in the cache.

    An image that cannot be read stays as it is: the run says so.

    Raises:
        InputError: The mask cannot be read.
    """
    if not os.path.isfile(image):
        return image
    parts = [_state(image), list(subject), list(thing), mask and _state(mask), "1"]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    path = cache_folder() / "r-bench" / f"{name}.png"
    if not path.exists():
        try:
            picture = open_image(image)
        except InputError:
            return image
        drawn = _draw_boxes(picture, subject, thing) if mask is None else _draw_masks(picture, mask)
        with replacing(make_folder(path.parent) / path.name) as partial:
            drawn.save(partial, format="png")
    return path


def _state(path: Path) -> list[str | int]:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _draw_boxes(image: Image.Image, *boxes: Box) -> Image.Image:
    draw = ImageDraw.Draw(image)
    size = (*image.size, *image.size)
    for box, colour in zip(boxes, ("red", "green"), strict=True):
        edges = [edge * side for edge, side in zip(box, size, strict=True)]
        draw.rectangle((edges[0], edges[1], edges[2], edges[3]), outline=colour, width=_OUTLINE)
    return image


def _draw_masks(image: Image.Image, path: Path) -> Image.Image:
    try:
        with open_regular(path, "mask ") as file, Image.open(file) as opened:
            values = np.asarray(opened.resize(image.size, Image.Resampling.NEAREST))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"mask {path} cannot be read: {error}") from error
    if values.ndim != 2:
        raise InputError(f"{path}: a mask has one value per pixel, 1 for the subject and 2 for the object")
    for value, colour in _MASKS.items():
        opacity = Image.fromarray(np.where(values == value, _OPACITY, 0).astype(np.uint8))
        image.paste(Image.new("RGB", image.size, colour), (0, 0), opacity)
    return image
