"""PaliGemma and Gemma: every image is one grid; up to Gemma 3 a square one, the same for all images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import MediaInputs, ViewTokens, VisionFamily, count_images
from regaze.toolkit.prompts.pixels import Patches


class Gemma3(VisionFamily):
    """Gemma 3 and Gemma 3n.

    The crops of Gemma 3's "pan and scan", which is off by default, count as images of their own: neither the
    ids nor the processor's outputs say to which image they belong.
    """

    name = "gemma3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3", "gemma3n")
    nested_images = True

    @property
    def _per_image(self) -> int:
        names = ("mm_tokens_per_image", "vision_soft_tokens_per_image")
        return next(getattr(self.config, name) for name in names if hasattr(self.config, name))

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        side = math.isqrt(self._per_image)
        return [ViewTokens.row_major(side, side)] * count_images(count, side * side, f"{side} x {side} cells")


class PaliGemma(Gemma3):
    """PaliGemma 1 and 2: image tokens first, then the question; published without a chat template."""

    name = "paligemma"
    model_types = ("paligemma",)

    @property
    def _per_image(self) -> int:
        vision = self.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    def format_prompt(self, question: str, images: int, system: str | None) -> str:
        """The processor adds the start token after the images, and the newline that ends a question."""
        if system:
            raise InputError("PaliGemma has no system messages")
        if not images:
            raise InputError("PaliGemma's processor takes no prompt without an image; give it one")
        return "<image>" * images + question


class _Gemma4Patches(Patches):
    """Patches whose number is read from their positions, [pieces, patches, 2] as (x, y), then -1."""

    def grids(self, features: Mapping[str, Any]) -> list[tuple[int, int]]:
        return [(int(last[1]) + 1, int(last[0]) + 1) for last in features["image_position_ids"].amax(1)]


class Gemma4(VisionFamily):
    """Gemma 4, images: a grid of the image's shape, read from the positions of its patches."""

    name = "gemma4"
    model_types = ("gemma4",)
    media_inputs = ("image_position_ids",)
    pixels = _Gemma4Patches(channels_last=True)
    nested_images = True

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        (positions,) = media.next_entries("image_position_ids", 1)  # [patches, 2] as (x, y), then -1
        pooled = self.config.vision_config.pooling_kernel_size
        columns, rows = ((last + 1) // pooled for last in positions.amax(0).tolist())
        if rows * columns != count:
            raise InputError(
                f"an image has {rows} x {columns} tokens by its patches' positions, but the prompt has "
                f"{count} tokens for it"
            )
        return [ViewTokens.row_major(rows, columns)]
