"""LLaVA-NeXT and LLaVA-OneVision: the whole image small, then large as one grid of several tiles' tokens.

The large grid is cut to the picture (tokens of padding are left out) and each of its rows ends with a newline
token, which has no place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

from transformers.image_processing_utils import select_best_resolution

from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece, fill, runs
from regaze.toolkit.prompts.families.videos import Videos
from regaze.toolkit.prompts.token_map import Shares


class LlavaNext(Family):
    """LLaVA-NeXT (1.6)."""

    name: ClassVar[str] = "llava-next"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    media: ClassVar[tuple[str, ...]] = ("image_sizes",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        layout, images = Layout.of(len(ids)), self._images(media)
        for start, count in runs([token == self.config.image_token_id for token in ids]):
            fill(layout, range(start, start + count), images)
        return layout

    def _images(self, media: Media) -> Iterator[list[Piece]]:
        while True:
            yield self._views(media.take("image_sizes"))

    @property
    def _side(self) -> int:
        """Patches on a side of a tile."""
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size

    def _views(self, size: Sequence[int]) -> list[Piece]:
        """The small and the large view of an image of `size` (height, width) pixels."""
        canvas = select_best_resolution(tuple(size), self.config.image_grid_pinpoints)
        (rows, columns), box = unpadded(size, canvas, self.config.vision_config.image_size, self._side)
        rows, columns = self._shrunk(rows, columns)
        cells = [cell for row in range(rows) for cell in (*range(row * columns, (row + 1) * columns), -1)]
        return [Piece.full(self._side, self._side), Piece((rows, columns), cells, box, continues=True)]

    def _shrunk(self, rows: int, columns: int) -> tuple[int, int]:
        return rows, columns


class LlavaNextVideo(Videos, LlavaNext):
    """LLaVA-NeXT-Video: frames are seen small, several patches to a token."""

    name = "llava-next-video"
    model_types = ("llava_next_video",)

    def frame(self, height: int) -> tuple[int, int]:
        pooled = self._side // self.config.spatial_pool_stride
        return pooled, pooled


class LlavaOnevision(Videos, LlavaNext):
    """LLaVA-OneVision: large grids are shrunk, several images of a prompt are shown small only.

    The processor counts a prompt's images only if it is given a list of images per prompt. Frames of a video
    have half the rows and columns; one newline token ends a video.
    """

    name = "llava-onevision"
    model_types = ("llava_onevision",)
    media = ("image_sizes", "batch_num_images")
    nested_images = True
    ends_with = 1

    def frame(self, height: int) -> tuple[int, int]:
        halved = math.ceil(self._side / 2)
        return halved, halved

    def _images(self, media: Media) -> Iterator[list[Piece]]:
        while True:
            together = media.take("batch_num_images")
            for size in (media.take("image_sizes") for _ in range(together)):
                yield self._views(size) if together == 1 else [self._small]

    @property
    def _small(self) -> Piece:
        """An image among several: its grid and a newline token."""
        return Piece((self._side, self._side), [*range(self._side**2), -1])

    def _shrunk(self, rows: int, columns: int) -> tuple[int, int]:
        tiles = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (tiles * self._side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def unpadded(
    size: Sequence[int], canvas: Sequence[int], tile: int, side: int
) -> tuple[tuple[int, int], Shares]:
    """The part of a canvas of tiles that an image takes up after it was fitted into it, centred.

    As many whole tokens are dropped on one side as on the other. Rounding leaves some padding, so that the
    box goes beyond [0, 1], or takes some of the image with it, less than a token on either side. Pixels of a
    tile that fill no patch (384 = 27 * 14 + 6) are shared among its tokens.

    Args:
        size: (height, width) of the image, in pixels. canvas: of the canvas, whole tiles.
        tile, side: pixels and tokens on a side of a tile.

    Returns:
        (rows, columns) that are left, and their box as shares of the image.
    """
    grid = [canvas[axis] // tile * side for axis in (0, 1)]
    # Which side is padded is decided by the tokens, how far by the pixels: each as the models and their
    # processors compute it, roundings included.
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
