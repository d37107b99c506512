"""LLaVA-NeXT and LLaVA-OneVision: a thumbnail, then one large grid of the tokens of all tiles.

The large grid is cut to the image (it has no tokens of padding), and each of its rows ends with a newline
token, which has no place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

from transformers.image_processing_utils import select_best_resolution

from regaze.toolkit.prompts.families.base import (
    Layout,
    MediaInputs,
    ViewTokens,
    VisionFamily,
    cells_with_row_ends,
)
from regaze.toolkit.prompts.families.videos import Videos
from regaze.toolkit.prompts.picture import Shares


class LlavaNext(VisionFamily):
    """LLaVA-NeXT (1.6)."""

    name: ClassVar[str] = "llava-next"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    media_inputs: ClassVar[tuple[str, ...]] = ("image_sizes",)

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout, images = Layout.empty(len(ids)), self._images(media)
        for start, count in self.image_runs(ids):
            layout.add_images(range(start, start + count), images)
        return layout

    def _images(self, media: MediaInputs) -> Iterator[list[ViewTokens]]:
        while True:
            yield self._views(media.next("image_sizes"))

    @property
    def _side(self) -> int:
        """Patches on a side of a tile."""
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size

    def _views(self, size: Sequence[int]) -> list[ViewTokens]:
        """The thumbnail and the large grid of an image of `size` (height, width) pixels."""
        canvas = select_best_resolution(tuple(size), self.config.image_grid_pinpoints)
        (rows, columns), box = unpadded(size, canvas, self.config.vision_config.image_size, self._side)
        rows, columns = self._shrunk(rows, columns)
        cells = cells_with_row_ends(rows, columns)
        return [
            ViewTokens.row_major(self._side, self._side),
            ViewTokens((rows, columns), cells, box, same_image=True),
        ]

    def _shrunk(self, rows: int, columns: int) -> tuple[int, int]:
        """The size of a large grid after the model has resized it."""
        return rows, columns


class LlavaNextVideo(Videos, LlavaNext):
    """LLaVA-NeXT-Video: a frame has no large grid, and its tokens pool several patches."""

    name = "llava-next-video"
    model_types = ("llava_next_video",)

    def frame_grid(self, height: int) -> tuple[int, int]:
        pooled = self._side // self.config.spatial_pool_stride
        return pooled, pooled


class LlavaOnevision(Videos, LlavaNext):
    """LLaVA-OneVision: large grids are resized; several images in a prompt have no large grids.

    The processor counts the images of a prompt only if it gets a list of images per prompt. Frames of a video
    have half the rows and columns; one newline token ends a video.
    """

    name = "llava-onevision"
    model_types = ("llava_onevision",)
    media_inputs = ("image_sizes", "batch_num_images")
    nested_images = True
    tokens_after_video = 1

    def frame_grid(self, height: int) -> tuple[int, int]:
        halved = math.ceil(self._side / 2)
        return halved, halved

    def _images(self, media: MediaInputs) -> Iterator[list[ViewTokens]]:
        while True:
            count = media.next("batch_num_images")  # of the prompt
            for size in (media.next("image_sizes") for _ in range(count)):
                yield self._views(size) if count == 1 else [self._thumbnail(size)]

    def _thumbnail(self, size: Sequence[int]) -> ViewTokens:
        """An image among several, padded to a square: its grid and a newline token."""
        high, wide = size
        across, down = (max(0, high - wide) // 2, max(0, wide - high) // 2)
        side = max(size)
        box = (-across / wide, -down / high, (side - across) / wide, (side - down) / high)
        return ViewTokens((self._side, self._side), [*range(self._side**2), -1], box)

    def _shrunk(self, rows: int, columns: int) -> tuple[int, int]:
        tiles = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (tiles * self._side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def unpadded(
    size: Sequence[int], canvas: Sequence[int], tile: int, side: int
) -> tuple[tuple[int, int], Shares]:
    """The part of a canvas of tiles that an image takes up when it is fitted into it, centred.

    The same number of whole tokens is dropped on both sides. Rounding leaves some padding, so that the box
    goes beyond [0, 1], or drops some of the image, less than a token on either side. The pixels of a tile
    that fill no patch (384 = 27 * 14 + 6) are shared among its tokens.

    Args:
        size: (height, width) of the image, in pixels. canvas: the same of the canvas, which is whole tiles.
        tile, side: the side of a tile in pixels and in tokens.

    Returns:
        (rows, columns) of the remaining tokens, and their box as shares of the image.
    """
    grid = [canvas[axis] // tile * side for axis in (0, 1)]
    # The model's grid decides which axis is padded, and the processor's pixels how far. Both are computed as
    # there, with their roundings.
    axis = 0 if size[1] / size[0] > grid[1] / grid[0] else 1
    scale = canvas[1 - axis] / size[1 - axis]
    fitted = min(math.ceil(size[axis] * scale), canvas[axis])
    kept = int(round(size[axis] * (grid[1 - axis] / size[1 - axis]), 7))
    dropped = (grid[axis] - kept) // 2
    token = canvas[axis] / grid[axis]
    before = (canvas[axis] - fitted) // 2
    edges = [(edge * token - before) / fitted for edge in (dropped, grid[axis] - dropped)]
    grid[axis] -= 2 * dropped
    box = (0.0, edges[0], 1.0, edges[1]) if axis == 0 else (edges[0], 0.0, edges[1], 1.0)
    return (grid[0], grid[1]), box
