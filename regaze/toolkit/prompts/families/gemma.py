"""PaliGemma and Gemma: every image is one grid, square and always the same up to Gemma 3."""

from __future__ import annotations

import math
from typing import ClassVar

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Media, Piece, whole_images
from regaze.toolkit.prompts.families.generic import image_id


class Gemma3(Family):
    """Gemma 3 and Gemma 3n.

    The crops of Gemma 3's "pan and scan", which is off by default, count as images of their own: neither the
    ids nor the processor's outputs say which image they are of.
    """

    name = "gemma3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3", "gemma3n")
    nested_images = True

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        image = image_id(self.config)
        return () if image is None else (image,)

    @property
    def _per_image(self) -> int:
        names = ("mm_tokens_per_image", "vision_soft_tokens_per_image")
        return next(getattr(self.config, name) for name in names if hasattr(self.config, name))

    def split(self, count: int, media: Media) -> list[Piece]:
        side = math.isqrt(self._per_image)
        return [Piece.full(side, side)] * whole_images(count, side * side, f"{side} x {side} cells")


class PaliGemma(Gemma3):
    """PaliGemma 1 and 2: image tokens first, then the question; published without a chat template."""

    name = "paligemma"
    model_types = ("paligemma",)

    @property
    def _per_image(self) -> int:
        vision = self.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    def prompt(self, question: str, images: int, system: str | None) -> str:
        """The processor writes the start token behind the images, and the newline that ends a question."""
        if system:
            raise InputError("PaliGemma has no system messages")
        if not images:
            raise InputError("PaliGemma's processor takes no prompt without an image; give it one")
        return "<image>" * images + question


class Gemma4(Family):
    """Gemma 4, images: a grid as the image's shape wants it, told by the patches' places."""

    name = "gemma4"
    model_types = ("gemma4",)
    media = ("image_position_ids",)
    nested_images = True

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def split(self, count: int, media: Media) -> list[Piece]:
        (places,) = media.take_several("image_position_ids", 1)  # [patches, 2] as (x, y), -1 behind the last
        pooled = self.config.vision_config.pooling_kernel_size
        columns, rows = ((int(last) + 1) // pooled for last in places.amax(0))
        if rows * columns != count:
            raise InputError(
                f"an image has {rows} x {columns} tokens by its patches' places, but the prompt has {count} "
                "tokens for it"
            )
        return [Piece.full(rows, columns)]
