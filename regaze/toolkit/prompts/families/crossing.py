"""Llama 3.2 Vision and Florence-2: the text sees images through cross-attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece
from regaze.toolkit.prompts.families.idefics import tile_box
from regaze.toolkit.prompts.token_map import Role, Sample, TokenMap


class Mllama(Family):
    """Llama 3.2 Vision: some layers are cross-attention, to the tiles of all images of a prompt.

    The keys of such a layer are, per image, as many tiles as an image may have, row by row; a tile begins
    with a class token. A picture is fitted onto the upper left of a canvas of whole tiles, the rest of which
    is black; boxes are shares of the canvas. The one token per image in the text marks where it stands.
    """

    name = "mllama"
    model_types = ("mllama",)
    nested_images = True

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def split(self, count: int, media: Media) -> list[Piece]:
        return [Piece.placeless(1)] * count

    def cross_tokens(self, inputs: Mapping[str, Any], batch: int, keys: int) -> TokenMap:
        ratios = inputs.get("aspect_ratio_ids")
        if ratios is None:
            raise InputError(
                "how an image is cut into tiles is told by 'aspect_ratio_ids', which the processor gives "
                "beside input_ids; pass the model all that the processor returned"
            )
        samples = [self._sample(row, keys) for row in ratios.tolist()]
        every = torch.ones(len(samples), keys, dtype=torch.bool)
        return TokenMap.from_samples(samples, every).repeat(batch // len(samples))

    def _sample(self, ratios: list[int], keys: int) -> Sample:
        """The keys of one row, whose images have these numbers of an aspect ratio; 0: no image."""
        vision, layout = self.config.vision_config, Layout.of(keys)
        side = vision.image_size // vision.patch_size
        size = side * side + 1
        if len(ratios) * vision.max_num_tiles * size > keys:
            raise InputError(f"{len(ratios)} images have more tiles than the {keys} keys of cross-attention")
        for image, ratio in enumerate(ratios):
            rows, columns = vision.supported_aspect_ratios[ratio - 1] if ratio else (0, 0)
            for tile in range(rows * columns):
                start = (image * vision.max_num_tiles + tile) * size
                box = tile_box(tile, rows, columns)
                piece = Piece((side, side), [-1, *range(side * side)], box, continues=tile > 0)
                layout.add(piece, range(start, start + size))
        roles = (int(Role.PAD if view < 0 else Role.IMAGE) for view in layout.view)
        return Sample(tuple(roles), tuple(layout.view), tuple(layout.cell), tuple(layout.views))


class Florence2(Family):
    """Florence-2: an encoder reads the image, then the text, and the decoder looks at what it made of both.

    The first token of the image is the mean of the others, which are a square grid.
    """

    name = "florence2"
    model_types = ("florence2",)
    padding_side = "right"

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def split(self, count: int, media: Media) -> list[Piece]:
        side = math.isqrt(count - 1)
        if side * side + 1 != count:
            raise InputError(f"{count} image tokens are no mean and square grid, as Florence-2's images are")
        return [Piece((side, side), [-1, *range(side * side)])]

    def prompt(self, question: str, images: int, system: str | None) -> str:
        if images > 1 or system:
            raise InputError("a florence2 prompt is one image and a task or question, without system text")
        return question
