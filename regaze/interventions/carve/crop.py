"""CARVE's edits of an image: a mask of the pixels with the highest values, its box, and the enlarged crop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.errors import InputError, ShapeError

#: Left, upper, right and lower edge in whole pixels; right and lower are the first ones outside.
PixelBox = tuple[int, int, int, int]
Mask = NDArray[np.bool_]


def top_share(values: NDArray[Any], share: float, where: Mask | None = None) -> Mask:
    """The `share` of the pixels with the highest values, and those equal to the last of them.

    Args:
        values: [H, W].
        share: in (0, 1]; the threshold is the (1 - share) quantile, linearly interpolated.
        where: [H, W], the pixels that count; others are False in the mask.
    """
    counted = np.ones(values.shape, bool) if where is None else where
    threshold = np.quantile(values[counted], 1 - share)
    # Resampled constants differ in their last bits: they are ties.
    return (values >= threshold - 1e-12 * abs(threshold)) & counted


def mask_image(image: Image.Image, mask: Mask) -> Image.Image:
    """The image with the pixels outside `mask` [H, W] black. Raises ShapeError when the sizes differ."""
    if mask.shape != (image.height, image.width):
        raise ShapeError(
            f"the mask is {list(mask.shape)}, but the image has {image.height} rows of {image.width} pixels"
        )
    return Image.fromarray(np.where(mask[..., None], np.asarray(image.convert("RGB")), 0).astype(np.uint8))


def bounding_box(mask: Mask) -> PixelBox:
    """The smallest box around the True pixels of `mask` [H, W]. Raises InputError when there is none."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    if not len(rows):
        raise InputError("the mask keeps no pixel, so there is nothing to crop to")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def zoom(image: Image.Image, box: PixelBox, limit: float = 4.0) -> Image.Image:
    """A part of the image, enlarged to cover the image's width and height, with its aspect ratio.

    Args:
        box: the part; its enlarged sides are rounded down to whole pixels.
        limit: no side grows beyond `limit` times the image's longer side; a thin box covers less then.
    """
    crop = image.crop(box)
    cover = max(image.width / crop.width, image.height / crop.height)
    scale = min(cover, limit * max(image.size) / max(crop.size))
    size = (max(1, int(crop.width * scale)), max(1, int(crop.height * scale)))
    return crop.resize(size, Image.Resampling.LANCZOS)
