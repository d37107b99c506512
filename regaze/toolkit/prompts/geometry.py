"""`Geometry`: which pixels of an image a model receives, and which of them a cell of its grid shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regaze.errors import RegazeError, ShapeError, UnsupportedModelError
from regaze.toolkit.prompts.pixels import seen_pixels

#: Left, upper, right and lower edge in pixels, as fractions.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Geometry:
    """How a processor turns an image into what the model receives: each axis is scaled, shifted and cropped.

    On each axis `seen = original * scale + offset`, where pixel i covers [i, i + 1). Resizing, padding,
    cropping and any sequence of them have this form. The cell of a token has a whole number of seen pixels.
    The remaining pixels at the right and lower edge (384 = 27 * 14 + 6) belong to no cell: a convolution over
    patches drops them.

    Attributes:
        original, seen: (width, height) of the image and of what the model receives.
        scale, offset: (x, y).
    """

    original: tuple[int, int]
    seen: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def squash(cls, original: tuple[int, int], seen: tuple[int, int]) -> Geometry:
        """The whole image resized to `seen`, without keeping its aspect ratio."""
        return cls(original, seen, (seen[0] / original[0], seen[1] / original[1]))

    def cell_box(self, row: int, column: int, grid: tuple[int, int]) -> Box | None:
        """The part of the image that a cell of a (rows, columns) grid shows; None for padding."""
        top, bottom = self._interval(1, grid[0])[row]
        left, right = self._interval(0, grid[1])[column]
        return (left, top, right, bottom) if left < right and top < bottom else None

    def window(self, grid: tuple[int, int]) -> Box:
        """The part of the image that all cells show; the rest was cropped away."""
        rows, columns = self._interval(1, grid[0]), self._interval(0, grid[1])
        return columns[0][0], rows[0][0], columns[-1][1], rows[-1][1]

    def visible(self, grid: tuple[int, int]) -> Tensor:
        """[H, W] bool, the pixels of the image whose centres are in a cell."""
        rows, columns = (self._centres(axis, cells) for axis, cells in ((1, grid[0]), (0, grid[1])))
        inside = [(x >= 0) & (x <= cells) for x, cells in ((rows, grid[0]), (columns, grid[1]))]
        return inside[0][:, None] & inside[1]

    def to_pixels(self, cells: Tensor) -> Tensor:
        """A map over the grid, [..., rows, columns], resampled to the image's pixels, [..., H, W] float64.

        Bilinear between the centres of cells, constant beyond the outermost ones, averaged where the image is
        smaller than the grid. Pixels that were cropped away are 0 (see `visible`).
        """
        return (
            self._pixel_weights(1, cells.shape[-2])
            @ cells.double().cpu()
            @ self._pixel_weights(0, cells.shape[-1]).T
        )

    def to_cells(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """The mean in each cell of a map over the image's pixels, [..., H, W]: [..., rows, columns] float64.

        Areas are exact: a mask becomes the share of each cell that it covers. Padding counts as 0.
        """
        if tuple(pixels.shape[-2:]) != self.original[::-1]:
            raise ShapeError(
                f"the map is {list(pixels.shape)}, but the image has {self.original[1]} rows "
                f"of {self.original[0]} pixels"
            )
        return self._cell_weights(1, grid[0]) @ pixels.double().cpu() @ self._cell_weights(0, grid[1]).T

    # Along one axis -----------------------------------------------------------------------------------

    def _side(self, axis: int, cells: int) -> int:
        """The side of a cell in seen pixels."""
        if not 0 < cells <= self.seen[axis]:
            raise ShapeError(f"a grid of {cells} cells does not fit {self.seen[axis]} pixels")
        return self.seen[axis] // cells

    def _edges(self, axis: int, cells: int) -> Tensor:
        """Edges of the cells in pixels of the image, [cells + 1]; outside the image where it was padded."""
        seen = torch.arange(cells + 1, dtype=torch.float64) * self._side(axis, cells)
        return (seen - self.offset[axis]) / self.scale[axis]

    def _interval(self, axis: int, cells: int) -> list[list[float]]:
        edges = self._edges(axis, cells).clamp(0, self.original[axis])
        return torch.stack([edges[:-1], edges[1:]], 1).tolist()

    def _centres(self, axis: int, cells: int) -> Tensor:
        """Centres of the image's pixels in units of cells, [pixels]; outside [0, cells]: cropped away."""
        centres = torch.arange(self.original[axis], dtype=torch.float64) + 0.5
        return (centres * self.scale[axis] + self.offset[axis]) / self._side(axis, cells)

    def _pixel_weights(self, axis: int, cells: int) -> Tensor:
        """Weights of cells in pixels, [pixels, cells]: a triangle filter, as in Pillow."""
        centres = self._centres(axis, cells)[:, None]
        reach = max(
            1.0, self.scale[axis] / self._side(axis, cells)
        )  # cells per pixel, where the image is smaller
        distance = (torch.arange(cells, dtype=torch.float64) + 0.5 - centres).abs()
        weights = (1 - distance / reach).clamp_min(0) * ((centres >= 0) & (centres <= cells))
        return weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)

    def _cell_weights(self, axis: int, cells: int) -> Tensor:
        """The share of each cell that a pixel covers, [cells, pixels]."""
        edges, pixels = self._edges(axis, cells), torch.arange(self.original[axis], dtype=torch.float64)
        overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
        return overlap.clamp_min(0) / (edges[1:] - edges[:-1])[:, None]


def geometry_of(processor: Any, size: tuple[int, int]) -> Geometry:
    """The geometry of an image of `size` (width, height) under an image processor of transformers.

    The steps are read from the processor's attributes: padding to a square, resizing, centre crop, padding at
    the edges. Their sizes are measured with a test image that it processes, with and without the steps after
    the resizing. The brightness ramps of that image then check the result.

    Raises:
        UnsupportedModelError: no single scale and shift describes the processor, for example because it makes
            several tiles. Make a `Geometry` for each tile, or for the grid that they form together.
    """
    ramps = _ramps(size)
    pixels = _processed(processor, ramps)
    later = [step for step in ("do_center_crop", "do_pad") if getattr(processor, step, None)]
    full, before = size, (0, 0)
    if "do_pad" in later and hasattr(processor, "pad_to_square"):  # LLaVA pads before it resizes
        later.remove("do_pad")
        full, before = (max(size), max(size)), ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2)
    resized = _size(_processed(processor, ramps, **dict.fromkeys(later, False)) if later else pixels)
    seen = _size(pixels)
    cut = [(resized[i] - seen[i]) // 2 if "do_center_crop" in later else 0 for i in (0, 1)]
    scale = (resized[0] / full[0], resized[1] / full[1])
    offset = (before[0] * scale[0] - cut[0], before[1] * scale[1] - cut[1])
    geometry = Geometry(size, seen, scale, offset)
    _check(geometry, pixels, processor)
    return geometry


def _processed(processor: Any, image: Image.Image, **options: bool) -> Tensor:
    """The pixels [3, H, W] in [0, 1] that the model would receive."""
    try:
        features = processor(images=[image], return_tensors="pt", **options)
        (pixels,) = seen_pixels(processor, features)
    except RegazeError:
        raise
    except Exception as error:  # processors can raise anything
        raise UnsupportedModelError(
            f"regaze cannot tell how {type(processor).__name__} resizes and crops: {error}"
        ) from error
    return pixels


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[-1], pixels.shape[-2]


def _ramps(size: tuple[int, int]) -> Image.Image:
    """A test image: red grows from left to right, green from top to bottom, blue is full."""
    width, height = size
    ramps = np.full((height, width, 3), 255, np.uint8)
    ramps[..., 0] = ((np.arange(width) + 0.5) / width * 255).round()
    ramps[..., 1] = ((np.arange(height)[:, None] + 0.5) / height * 255).round()
    return Image.fromarray(ramps)


#: Largest error of the ramps, as a share of the image's side: an 8-bit ramp rounds to 1/255, and a crop may
#: be off by a pixel.
_TOLERANCE = 0.02


def _check(geometry: Geometry, pixels: Tensor, processor: Any) -> None:
    """Compare the processed ramps with those that `geometry` predicts."""
    inside, expected = [], []
    for side, seen, scale, offset in zip(
        geometry.original, geometry.seen, geometry.scale, geometry.offset, strict=True
    ):
        place = (torch.arange(seen) + 0.5 - offset) / scale
        reach = 2 * max(1.0, 1 / scale)  # of a bicubic filter, which blurs the ends of a ramp
        inside.append((place > reach) & (place < side - reach))
        expected.append(place / side)
    off = torch.maximum((pixels[0] - expected[0]).abs(), (pixels[1] - expected[1][:, None]).abs())
    if (off[inside[1][:, None] & inside[0]] > _TOLERANCE).any():
        raise UnsupportedModelError(
            f"{type(processor).__name__} does more than pad, resize and crop: regaze cannot tell which part "
            f"of an image of {geometry.original[0]} x {geometry.original[1]} pixels a token shows"
        )
