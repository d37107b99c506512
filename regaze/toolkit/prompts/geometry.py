"""`Geometry`: which pixels of an image a model receives, and which of them a cell of its grid shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from regaze.errors import ShapeError, UnsupportedModelError
from regaze.toolkit.prompts.picture import rounded
from regaze.toolkit.prompts.pixels import PixelLayout, guess_layout, read_pieces

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

    @property
    def box(self) -> Box:
        """The part of the image that is seen, in its pixels; beyond it where it is padded."""
        (x, y), (across, down), (width, height) = self.offset, self.scale, self.seen
        return -x / across, -y / down, (width - x) / across, (height - y) / down

    @property
    def shares(self) -> Box:
        """As `box`, in fractions of the image's width and height."""
        (left, upper, right, lower), (width, height) = self.box, self.original
        return rounded((left / width, upper / height, right / width, lower / height))

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


def geometry_of(processor: Any, size: tuple[int, int], layout: PixelLayout | None = None) -> Geometry:
    """The geometry of an image of `size` (width, height) under an image processor of transformers.

    Args:
        layout: how its pixels lie, `Family.pixels`; None: [N, 3, H, W] or Qwen-VL's patches.

    Raises:
        UnsupportedModelError: no single scale and shift describes what the processor does, for example
            several tiles per image. Make a `Geometry` for each tile, or for the grid they form together.
    """
    name = type(processor).__name__

    def read(image: Image.Image) -> list[Tensor]:
        try:
            features = processor(images=[image], return_tensors="pt")
            return read_pieces(layout or guess_layout(features), processor, features)
        except Exception as error:  # other people's processors can fail in any way
            raise UnsupportedModelError(
                f"regaze cannot tell how {name} resizes and crops: {error}"
            ) from error

    geometries = measure(read, size)
    if len(geometries) != 1:
        raise UnsupportedModelError(
            f"{name} cuts an image into {len(geometries)} tiles; one picture per image is needed"
        )
    (geometry,) = geometries
    if geometry is None:
        raise UnsupportedModelError(
            f"{name} does more than pad, resize and crop: regaze cannot tell which part of an image of "
            f"{size[0]} x {size[1]} pixels a token shows"
        )
    return geometry


# Measuring ----------------------------------------------------------------------------------------------

#: How far a ramp may be off, as a share of the image's side: a crop may round by a pixel.
_TOLERANCE = 0.02
#: An axis of fewer pixels than the first has no ramp to fit; one of fewer than the second has a rough one.
_FEWEST, _FEW = 6, 32
#: Seen pixels up to which an edge is taken to lie on a whole one: measured edges are off by 0.1 or so.
_SNAP = 0.3
#: How far a measured edge may be from that of a tile, as a share of the whole image.
_NEAR = 0.01


def measure(read: Callable[[Image.Image], list[Tensor]], size: tuple[int, int]) -> list[Geometry | None]:
    """Which part of an image of `size` (width, height) each piece of its pixels shows.

    Two pictures are read whose brightness grows from left to right and from top to bottom, the one the
    negative of the other. Where they differ is image rather than padding; how much they differ is a place.

    Args:
        read: what a processor makes of an image, as pieces [3, H, W] of pixels in [0, 1].

    Returns:
        For each piece its geometry, or None: padding alone, or not a scaled part of the image.
    """
    ramps = _ramps(size)
    positive, negative = read(ramps), read(ImageOps.invert(ramps))
    differences = [a - b for a, b in zip(positive, negative, strict=True)]
    geometries = [_fit(difference, size) for difference in differences]
    # Tiles have one scale, finer than a thumbnail's. One that is mostly padding shows too little of it.
    known = sorted((geometry.scale, geometry.seen) for geometry in geometries if geometry is not None)
    scales = {seen: scale for scale, seen in known}
    return [
        geometry or _fit(difference, size, scales.get((difference.shape[2], difference.shape[1])))
        for geometry, difference in zip(geometries, differences, strict=True)
    ]


def _ramps(size: tuple[int, int]) -> Image.Image:
    """Red grows from left to right, green from top to bottom, blue is full.

    Rounding differs from line to line, so that the mean of several is finer than 8 bits.
    """
    width, height = size
    thresholds = (np.arange(16) * 7 % 16 + 0.5) / 16
    across, down = (
        np.floor((np.arange(n) + 0.5) / n * 255 + thresholds[:, None]).astype(np.uint8) for n in size
    )
    ramps = np.full((height, width, 3), 255, np.uint8)
    ramps[..., 0] = across[np.arange(height) % 16]
    ramps[..., 1] = down[np.arange(width) % 16].T
    return Image.fromarray(ramps)


def _fit(
    difference: Tensor, size: tuple[int, int], scale: tuple[float, float] | None = None
) -> Geometry | None:
    """The geometry of a piece [3, H, W], given the difference between the two pictures of `_ramps`.

    Args:
        size: of the image. scale: where it is known.
    """
    shown = difference[2] > 0.5
    if not shown.any():
        return None
    red, green, blue = difference.double() * shown
    weights = blue.sum(0), blue.sum(1)  # less than 1 where the edge is mixed with padding
    ramps = red.sum(0) / weights[0], green.sum(1) / weights[1]
    across, down = (
        _fit_axis(ramps[axis], size[axis]) if scale is None else _shift(ramps[axis], scale[axis] * size[axis])
        for axis in (0, 1)
    )
    if across is None or down is None:
        return None
    seen = (difference.shape[2], difference.shape[1])
    scale = (across[0] / size[0], down[0] / size[1])
    return Geometry(size, seen, scale, (across[1], down[1]))


def _fit_axis(ramp: Tensor, original: int) -> tuple[float, float] | None:
    """Seen pixels of the whole image along an axis, and the one it begins at; None where no line fits.

    Args:
        ramp: from -1 at the image's beginning to 1 at its end, for each seen pixel; NaN for padding.
        original: pixels of the image along the axis.
    """
    places = (ramp.numpy() + 1) / 2
    inside, centres = np.isfinite(places), np.arange(len(places)) + 0.5
    first, last = np.flatnonzero(inside)[[0, -1]]
    filled = (float(last + 1 - first), float(first))  # what it is if the image is not cropped
    if original < _FEWEST:
        return filled if abs(places[first] + places[last] - 1) < 2 / original else None
    chosen, slope, start = inside & (places > 0.02) & (places < 0.98), 0.0, 0.0
    for _ in range(3):
        if chosen.sum() < 3:
            return None
        slope, start = (float(x) for x in np.polyfit(centres[chosen], places[chosen], 1))
        if slope <= 0:
            return None
        line = start + slope * centres
        reach = 2 * max(1 / original, slope)  # of a bicubic filter: the ends of a ramp blur
        chosen = inside & (line > reach) & (line < 1 - reach)
    if np.abs(line - places)[chosen].max(initial=0.0) > _TOLERANCE:
        return None
    return _snap(1 / slope, -start / slope, len(places), filled if original < _FEW else None)


def _shift(ramp: Tensor, resized: float) -> tuple[float, float]:
    """As `_fit_axis`, where the size of the whole image is known."""
    places, centres = (ramp.numpy() + 1) / 2, np.arange(len(ramp)) + 0.5
    return _snap(resized, float(np.nanmedian(centres - places * resized)), len(ramp), None)


def _snap(
    resized: float, offset: float, seen: int, filled: tuple[float, float] | None
) -> tuple[float, float]:
    """What a fit means: one of several equal tiles, an image between padding, or whole pixels.

    Args:
        resized, offset: as measured. seen: seen pixels along the axis.
        filled: both, if the image is not cropped; given where the fit is a rough one.
    """
    tile = float(max(1, round(resized / seen)) * seen), float(round(offset / seen) * seen)
    near = max(1.0, _NEAR * resized)
    for likely in (tile, filled):
        if likely and abs(resized - likely[0]) < near and abs(offset - likely[1]) < near:
            return likely
    return _whole(resized), _whole(offset)


def _whole(edge: float) -> float:
    return float(round(edge)) if abs(edge - round(edge)) < _SNAP else edge
