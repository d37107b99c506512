"""Llama 4: tiles row by row, with separators between them, then a thumbnail."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Layout, MediaInputs, ViewTokens, VisionFamily, tile_boxes
from regaze.toolkit.prompts.picture import WHOLE, Shares


class Llama4(VisionFamily):
    """Llama 4 Scout and Maverick.

    An image is fitted into the upper left of a canvas of tiles; the rest is black. The ids give the grid of
    tiles. How much of the canvas is image is read from the pixels, and not known without them.
    """

    name = "llama4"
    model_types = ("llama4",)
    media_inputs = ("pixel_values",)
    measures_boxes = True

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout, image = Layout.empty(len(ids)), list[tuple[int, int]]()  # runs of one image
        ends = {i for i, token in enumerate(ids) if token == self.config.eoi_token_index}
        for start, count in self.image_runs(ids):
            image.append((start, count))
            if start + count not in ends:
                continue
            tiles = image[:-1]
            separators = [ids[first + length] for first, length in tiles]
            rows = separators.count(separators[-1]) if tiles else 0  # the last one ends a row
            if tiles and len(tiles) % rows:
                raise InputError(f"an image's {len(tiles)} tiles are not {rows} rows of equally many")
            pixels = media.next_entries("pixel_values", len(image)) if media.has("pixel_values") else None
            boxes = _boxes(rows, len(tiles) // rows, pixels) if tiles else []
            for number, ((first, length), box) in enumerate(zip(image, [*boxes, WHOLE], strict=True)):
                side = math.isqrt(length)
                tokens = ViewTokens.row_major(side, side, box=box, same_image=number > 0)
                layout.add(tokens, range(first, first + length))
            image = []
        if image:
            raise InputError("an image's tokens are not followed by the one that ends an image")
        return layout


#: Pixels up to this are black; the processor of this family makes them -1.
_BLACK = -0.999


def _boxes(rows: int, columns: int, pixels: Tensor | None) -> list[Shares | None]:
    """The box of each tile; the black rest of the canvas is beyond 1.

    Args:
        pixels: [rows * columns + 1, 3, S, S], the tiles and the whole image.
    """
    if pixels is None:
        return [None] * (rows * columns)
    side = pixels.shape[-1]
    canvas = pixels[:-1].view(rows, columns, 3, side, side).permute(2, 0, 3, 1, 4)
    canvas = canvas.reshape(3, rows * side, columns * side)
    # Black at the end of the image itself does not count: the thumbnail has the same share of it.
    high, wide = (_filled(canvas, axis) / _filled(pixels[-1], axis) for axis in (1, 2))
    return [(x0 / wide, y0 / high, x1 / wide, y1 / high) for x0, y0, x1, y1 in tile_boxes(rows, columns)]


def _filled(picture: Tensor, axis: int) -> float:
    """Share of the rows (axis 1) or columns (axis 2) of [3, H, W] up to the last that is not black."""
    bright = (picture > _BLACK).any(0).any(2 - axis).nonzero()
    return (int(bright[-1]) + 1) / picture.shape[axis] if len(bright) else 1.0
