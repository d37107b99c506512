"""Kimi K2.5 and PaddleOCR-VL: images of any shape, as in Qwen-VL."""

from __future__ import annotations

from typing import ClassVar

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import MediaInputs, ViewTokens
from regaze.toolkit.prompts.families.qwen_vl import QwenVL
from regaze.toolkit.prompts.pixels import Patches


class PaddleOcrVL(QwenVL):
    """`PaddleOCRVLForConditionalGeneration`."""

    name = "paddleocr-vl"
    model_types: ClassVar[tuple[str, ...]] = ("paddleocr_vl",)
    pixels = Patches()


class KimiK25(QwenVL):
    """Kimi K2.5, images. They are padded on the right and below to whole tokens, by an unknown amount."""

    name = "kimi-k2.5"
    model_types: ClassVar[tuple[str, ...]] = ("kimi_k25",)
    pixels = Patches()
    measures_boxes = True

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        _, high, wide = media.next("image_grid_thw")
        merge = self.config.vision_config.merge_kernel_size
        rows, columns = high // merge[0], wide // merge[1]
        if rows * columns != count:
            raise InputError(f"an image has {rows} x {columns} tokens, but the prompt has {count} for it")
        return [ViewTokens.row_major(rows, columns)]
