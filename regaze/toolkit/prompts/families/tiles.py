"""InternVL, Aya Vision, Command A Vision, GOT-OCR2, PerceptionLM: tiles one after the other, and a thumbnail.

An image is squashed onto a canvas of whole tiles whose shape suits it; tiles follow each other row by row.
The processors do not say how many there are in a row: the thumbnail does, for it shows the same picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece, fill, whole_images
from regaze.toolkit.prompts.families.videos import Videos
from regaze.toolkit.prompts.token_map import Shares


class Tiles(Family):
    """Several square tiles per image, all of one grid, and the image as a thumbnail where there are several.

    Tiles of one image lie next to each other or have one token between them (a line break, the tile's name).
    """

    media = ("pixel_values",)
    thumbnail_first: ClassVar[bool] = False

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    @property
    def side(self) -> int:
        """Tokens on a side of a tile."""
        raise NotImplementedError

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        layout = Layout.of(len(ids))
        for places in _close([token == self.config.image_token_id for token in ids]):
            self.place(layout, places, media)
        return layout

    def place(self, layout: Layout, places: Sequence[int], media: Media) -> None:
        """Lay out the image whose tokens are at `places`."""
        tiles = whole_images(len(places), self.side**2, f"tiles of {self.side} x {self.side}")
        pixels = media.take_several("pixel_values", tiles)
        fill(layout, places, iter([self._views(pixels, self.side)]))

    def _views(self, pixels: Tensor, side: int) -> list[Piece]:
        """The views of one image of [views, 3, H, W] pixels."""
        if len(pixels) == 1:
            return [Piece.full(side, side)]
        tiles, thumbnail = (pixels[1:], pixels[0]) if self.thumbnail_first else (pixels[:-1], pixels[-1])
        whole = Piece.full(side, side, continues=not self.thumbnail_first)
        boxes = _boxes(len(tiles), arrangement(tiles, thumbnail))
        parts = [
            Piece.full(side, side, box=box, continues=self.thumbnail_first or number > 0)
            for number, box in enumerate(boxes)
        ]
        return [whole, *parts] if self.thumbnail_first else [*parts, whole]


class InternVL(Tiles):
    """InternVL 3 and 3.5 of transformers; each frame of a video counts as an image."""

    name = "internvl"
    model_types = ("internvl",)

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
    """GOT-OCR 2: a page, whole or cut into tiles (`crop_to_patches`); several pages are not told apart."""

    name = "got-ocr2"
    model_types = ("got_ocr2",)

    @property
    def side(self) -> int:
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size // 4  # two convolutions of stride 2

    def prompt(self, question: str, images: int, system: str | None) -> str:
        """As the processor writes it around its own "OCR: "."""
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

    def frame(self, height: int) -> tuple[int, int]:
        side = height // self._patch // self.config.projector_pooling_ratio
        return side, side

    def place(self, layout: Layout, places: Sequence[int], media: Media) -> None:
        fill(layout, places, self._images(media))  # nothing stands between the tokens of two images

    def _images(self, media: Media) -> Iterator[list[Piece]]:
        while True:
            (pixels,) = media.take_several("pixel_values", 1)
            yield self._views(pixels, self.frame(pixels.shape[-2])[0])

    @property
    def _patch(self) -> int:
        """Pixels on a side of a patch: timm has it in the name of the tower."""
        vision = self.config.vision_config
        named = re.search(r"patch(\d+)", getattr(vision, "architecture", None) or "")
        return int(named[1]) if named else vision.patch_size


def arrangement(tiles: Tensor, thumbnail: Tensor) -> tuple[int, int] | None:
    """How tiles that follow each other row by row make up the picture that a thumbnail shows.

    Each way to lay them out is compared with the thumbnail, both reduced to at most 32 x 32 means.

    Args:
        tiles: [n, 3, H, W]. thumbnail: [3, H, W].

    Returns:
        (rows, columns), or None where no way is clearly (by half its squared error) better than all others:
        pictures of one colour, other people's tiles.
    """
    count, size = len(tiles), min(32, thumbnail.shape[-1])
    small = F.adaptive_avg_pool2d(tiles.float(), size)
    wanted = F.adaptive_avg_pool2d(thumbnail.float(), size)
    errors: list[tuple[float, tuple[int, int]]] = []
    for rows in range(1, count + 1):
        columns = count // rows
        if rows * columns == count:
            canvas = small.view(rows, columns, -1, size, size).permute(2, 0, 3, 1, 4)
            joined = F.adaptive_avg_pool2d(canvas.reshape(-1, rows * size, columns * size), size)
            errors.append((float((joined - wanted).square().mean()), (rows, columns)))
    errors.sort()
    if len(errors) > 1 and not errors[0][0] < errors[1][0] / 2:
        return None
    return errors[0][1]


def _boxes(count: int, shape: tuple[int, int] | None) -> list[Shares | None]:
    """The box of each tile, row by row."""
    if shape is None:
        return [None] * count
    rows, columns = shape
    places = [divmod(number, columns) for number in range(count)]
    return [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r, c in places]


def _close(flags: Sequence[bool]) -> list[list[int]]:
    """The positions of True, in groups with more than one False between them."""
    groups: list[list[int]] = []
    for position in (i for i, flag in enumerate(flags) if flag):
        if groups and position - groups[-1][-1] <= 2:
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups
