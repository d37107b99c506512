"""Chameleon and Emu3: a quantised autoencoder turns an image into tokens of the model's vocabulary."""

from __future__ import annotations

from typing import ClassVar

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import (
    MediaInputs,
    ViewTokens,
    VisionFamily,
    cells_with_row_ends,
    count_images,
)


class Chameleon(VisionFamily):
    """One square, row-major grid of tokens between two markers. The processor makes a centre crop."""

    name = "chameleon"
    model_types = ("chameleon",)
    measures_boxes: ClassVar[bool] = True

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        encoder = self.config.vq_config
        side = encoder.resolution // 2 ** (len(encoder.channel_multiplier) - 1)
        number = count_images(count, side * side, f"{side} x {side} tokens")
        return [ViewTokens.row_major(side, side)] * number

    def format_prompt(self, question: str, images: int, system: str | None) -> str:
        if system:
            raise InputError("a chameleon prompt has no place for system text")
        return "<image>" * images + question


class Emu3(Chameleon):
    """A grid of the image's own shape, each row of which ends in an end-of-line token."""

    name = "emu3"
    model_types = ("emu3",)
    measures_boxes = False
    media_inputs = ("image_sizes",)

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        scale = 2 ** (len(self.config.vq_config.channel_multiplier) - 1)
        rows, columns = (int(side) // scale for side in media.next("image_sizes"))
        if rows * (columns + 1) != count:
            raise InputError(
                f"an image of {rows} x {columns} cells has {rows * (columns + 1)} tokens with its line "
                f"ends, but the prompt has {count} for it"
            )
        return [ViewTokens((rows, columns), cells_with_row_ends(rows, columns))]
