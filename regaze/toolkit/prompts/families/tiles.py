"""InternVL, Aya Vision, Command A Vision, GOT-OCR2, PerceptionLM: tiles row by row, and a thumbnail.

An image is resized to a canvas of whole tiles of about its shape. How many tiles there are in a row is no
output of the processors: it is found by comparing the tiles with the thumbnail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import (
    Layout,
    MediaInputs,
    ViewTokens,
    VisionFamily,
    count_images,
    tile_boxes,
)
from regaze.toolkit.prompts.families.videos import Videos


class Tiles(VisionFamily):
    """Several square tiles per image, all of one grid, and the image as a thumbnail where there are several.

    Tiles of one image are contiguous or have one token between them (a line break, the tile's name).
    """

    media_inputs = ("pixel_values",)
    thumbnail_first: ClassVar[bool] = False

    @property
    def side(self) -> int:
        """The side of a tile in tokens."""
        raise NotImplementedError

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout = Layout.empty(len(ids))
        image = self.config.image_token_id
        for positions in _groups([token == image for token in ids]):  # not the tokens of a video
            self.add_group(layout, positions, media)
        return layout

    def add_group(self, layout: Layout, positions: Sequence[int], media: MediaInputs) -> None:
        """Add the image whose tokens are at `positions`."""
        tiles = count_images(len(positions), self.side**2, f"tiles of {self.side} x {self.side}")
        pixels = media.next_entries("pixel_values", tiles)
        layout.add_images(positions, iter([self._views(pixels, self.side)]))

    def _views(self, pixels: Tensor, side: int) -> list[ViewTokens]:
        """The views of one image of [views, 3, H, W] pixels."""
        if len(pixels) == 1:
            return [ViewTokens.row_major(side, side)]
        tiles, thumbnail = (pixels[1:], pixels[0]) if self.thumbnail_first else (pixels[:-1], pixels[-1])
        whole = ViewTokens.row_major(side, side, same_image=not self.thumbnail_first)
        grid = arrangement(tiles, thumbnail)
        boxes = [None] * len(tiles) if grid is None else tile_boxes(*grid)
        parts = [
            ViewTokens.row_major(side, side, box=box, same_image=self.thumbnail_first or number > 0)
            for number, box in enumerate(boxes)
        ]
        return [whole, *parts] if self.thumbnail_first else [*parts, whole]


class InternVL(Tiles):
    """InternVL 3 and 3.5 of transformers, and Qianfan-OCR; each frame of a video counts as an image."""

    name = "internvl"
    model_types = ("internvl", "qianfan_ocr")

    @property
    def side(self) -> int:
        vision = self.config.vision_config
        return int(vision.image_size[0] // vision.patch_size[0] * self.config.downsample_ratio)


class Cohere(Tiles):
    """Aya Vision and Command A Vision."""

    name = "cohere-vision"
    model_types = ("aya_vision", "cohere2_vision")

    @property
    def side(self) -> int:
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size // self.config.downsample_factor


class GotOcr2(Tiles):
    """GOT-OCR 2: a page, whole or cut into tiles (`crop_to_patches`); several pages count as one image."""

    name = "got-ocr2"
    model_types = ("got_ocr2",)

    @property
    def side(self) -> int:
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size // 4  # two convolutions of stride 2

    def format_prompt(self, question: str, images: int, system: str | None) -> str:
        """The prompt that the processor writes around its own "OCR: "."""
        if images != 1:
            raise InputError(f"GOT-OCR2 reads one image per prompt, got {images}")
        system = system or "You should follow the instructions carefully and explain your answers in detail."
        return (
            f"<|im_start|>system\n{system}<|im_end|><|im_start|>user\n<img><imgpad></img>\n{question}"
            "<|im_end|><|im_start|>assistant\n"
        )


class PerceptionLM(Videos, Tiles):
    """PerceptionLM: the thumbnail comes first, and all images of a batch have as many tiles."""

    name = "perception-lm"
    model_types = ("perception_lm",)
    thumbnail_first = True

    def frame_grid(self, height: int) -> tuple[int, int]:
        side = height // self._patch // self.config.projector_pooling_ratio
        return side, side

    def add_group(self, layout: Layout, positions: Sequence[int], media: MediaInputs) -> None:
        layout.add_images(positions, self._images(media))  # images, too, are contiguous

    def _images(self, media: MediaInputs) -> Iterator[list[ViewTokens]]:
        while True:
            (pixels,) = media.next_entries("pixel_values", 1)
            yield self._views(pixels, self.frame_grid(pixels.shape[-2])[0])

    @property
    def _patch(self) -> int:
        """The side of a patch in pixels; timm has it in the name of the tower."""
        vision = self.config.vision_config
        named = re.search(r"patch(\d+)", getattr(vision, "architecture", None) or "")
        return int(named[1]) if named else vision.patch_size


def arrangement(tiles: Tensor, thumbnail: Tensor) -> tuple[int, int] | None:
    """The grid in which tiles, given row by row, make up the image that a thumbnail shows.

    Each possible grid is compared with the thumbnail, both reduced to at most 32 x 32 means.

    Args:
        tiles: [n, 3, H, W]. thumbnail: [3, H, W].

    Returns:
        (rows, columns), or None where no grid has less than half the squared error of all others: for images
        of one colour, or tiles of another kind.
    """
    count, size = len(tiles), min(32, thumbnail.shape[-1])
    small = F.adaptive_avg_pool2d(tiles.float(), size)
    target = F.adaptive_avg_pool2d(thumbnail.float(), size)
    grids, errors = [], []
    for rows in range(1, count + 1):
        columns = count // rows
        if rows * columns == count:
            canvas = small.view(rows, columns, -1, size, size).permute(2, 0, 3, 1, 4)
            joined = F.adaptive_avg_pool2d(canvas.reshape(-1, rows * size, columns * size), size)
            grids.append((rows, columns))
            errors.append((joined - target).square().mean())
    found = sorted(zip(torch.stack(errors).tolist(), grids, strict=True))
    return None if len(found) > 1 and not found[0][0] < found[1][0] / 2 else found[0][1]


def _groups(flags: Sequence[bool]) -> list[list[int]]:
    """The positions of True, in groups with more than one False between them."""
    groups: list[list[int]] = []
    for position in (i for i, flag in enumerate(flags) if flag):
        if groups and position - groups[-1][-1] <= 2:
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups
