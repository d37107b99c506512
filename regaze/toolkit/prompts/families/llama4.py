"""Llama 4: tiles row by row, marked by separators, then the whole image small."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece, runs
from regaze.toolkit.prompts.token_map import WHOLE, Shares


class Llama4(Family):
    """Llama 4 Scout and Maverick.

    An image is fitted into a canvas of tiles, at the upper left, the rest black. The ids tell the tiles;
    how much of the canvas is image is read from the pixels, and not known without them.
    """

    name = "llama4"
    model_types = ("llama4",)
    media = ("pixel_values",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_index,)

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        layout, image = Layout.of(len(ids)), list[tuple[int, int]]()
        ends = {i for i, token in enumerate(ids) if token == self.config.eoi_token_index}
        for start, count in runs([token == self.config.image_token_index for token in ids]):
            image.append((start, count))
            if start + count not in ends:
                continue
            tiles = image[:-1]
            separators = [ids[first + length] for first, length in tiles]
            rows = separators.count(separators[-1]) if tiles else 0  # the last one ends a row
            if tiles and len(tiles) % rows:
                raise InputError(f"an image's {len(tiles)} tiles are not {rows} rows of equally many")
            pixels = media.take_several("pixel_values", len(image)) if media.has("pixel_values") else None
            boxes = _boxes(rows, len(tiles) // rows, pixels) if tiles else []
            for number, ((first, length), box) in enumerate(zip(image, [*boxes, WHOLE], strict=True)):
                side = math.isqrt(length)
                layout.add(
                    Piece.full(side, side, box=box, continues=number > 0), range(first, first + length)
                )
            image = []
        if image:
            raise InputError("an image's tokens are not followed by the one that ends an image")
        return layout


_BLACK = -0.999  # black is -1 for this family's processor


def _boxes(rows: int, columns: int, pixels: Tensor | None) -> list[Shares | None]:
    """What each tile shows of the image; beyond 1 lies the black rest of the canvas.

    Args:
        pixels: [rows * columns + 1, 3, S, S], the tiles and the whole image.
    """
    if pixels is None:
        return [None] * (rows * columns)
    side = pixels.shape[-1]
    canvas = pixels[:-1].view(rows, columns, 3, side, side).permute(2, 0, 3, 1, 4)
    canvas = canvas.reshape(3, rows * side, columns * side)
    # Where the image itself ends in black, the small one does so by the same share.
    high, wide = (_filled(canvas, axis) / _filled(pixels[-1], axis) for axis in (1, 2))
    return [
        (c / columns / wide, r / rows / high, (c + 1) / columns / wide, (r + 1) / rows / high)
        for r in range(rows)
        for c in range(columns)
    ]


def _filled(picture: Tensor, axis: int) -> float:
    """Share of the rows (axis 1) or columns (axis 2) of [3, H, W] up to the last that is not black."""
    bright = (picture > _BLACK).any(0).any(2 - axis).nonzero()
    return (int(bright[-1]) + 1) / picture.shape[axis] if len(bright) else 1.0
