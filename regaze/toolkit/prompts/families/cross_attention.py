"""Llama 3.2 Vision and Florence-2: the text attends to images through cross-attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Layout, MediaInputs, ViewTokens, VisionFamily, tile_boxes
from regaze.toolkit.prompts.token_map import PromptTokens, Role, TokenMap


class Mllama(VisionFamily):
    """Llama 3.2 Vision: some layers cross-attend to the tiles of all images of a prompt.

    The keys of such a layer are, for each image, as many tiles as an image can have, row by row; each begins
    with a class token. An image is fitted into the upper left of a canvas of whole tiles, the rest of which
    is black; boxes are shares of the canvas. In the text one token per image marks its place.
    """

    name = "mllama"
    model_types = ("mllama",)
    measures_boxes = True
    nested_images = True

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        return [ViewTokens.unplaced(1)] * count

    def cross_tokens(self, inputs: Mapping[str, Any], batch: int, keys: int) -> TokenMap:
        ratios = inputs.get("aspect_ratio_ids")
        if ratios is None:
            raise InputError(
                "the tiles of an image depend on 'aspect_ratio_ids', which the processor gives beside "
                "input_ids; pass the model all that the processor returned"
            )
        samples = [self._sample(row, keys) for row in ratios.tolist()]
        every = torch.ones(len(samples), keys, dtype=torch.bool)
        return TokenMap.from_samples(samples, every).repeat(batch // len(samples))

    def _sample(self, ratios: list[int], keys: int) -> PromptTokens:
        """The keys of one row of the batch, given the aspect ratio id of each image; 0: no image."""
        vision, layout = self.config.vision_config, Layout.empty(keys)
        side = vision.image_size // vision.patch_size
        size = side * side + 1
        if len(ratios) * vision.max_num_tiles * size > keys:
            raise InputError(f"{len(ratios)} images have more tiles than the {keys} keys of cross-attention")
        for image, ratio in enumerate(ratios):
            rows, columns = vision.supported_aspect_ratios[ratio - 1] if ratio else (0, 0)
            for tile, box in enumerate(tile_boxes(rows, columns)):
                start = (image * vision.max_num_tiles + tile) * size
                tokens = ViewTokens((side, side), [-1, *range(side * side)], box, same_image=tile > 0)
                layout.add(tokens, range(start, start + size))
        roles = (int(Role.PAD if view < 0 else Role.IMAGE) for view in layout.view)
        return PromptTokens(tuple(roles), tuple(layout.view), tuple(layout.cell), tuple(layout.views))


class Florence2(VisionFamily):
    """Florence-2: an encoder reads the image and then the text, and the decoder cross-attends to its output.

    The first token of the image is the mean of the others, which are a square grid.
    """

    name = "florence2"
    model_types = ("florence2",)
    measures_boxes = True
    padding_side = "right"

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        side = math.isqrt(count - 1)
        if side * side + 1 != count:
            raise InputError(f"{count} image tokens are no mean and square grid, as Florence-2's images are")
        return [ViewTokens((side, side), [-1, *range(side * side)])]

    def format_prompt(self, question: str, images: int, system: str | None) -> str:
        if images > 1 or system:
            raise InputError("a florence2 prompt is one image and a task or question, without system text")
        return question
