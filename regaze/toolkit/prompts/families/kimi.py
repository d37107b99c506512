"""Kimi K2.5 and PaddleOCR-VL: images of any shape, as Qwen-VL's."""

from __future__ import annotations

from typing import ClassVar

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Media, Piece
from regaze.toolkit.prompts.families.qwen_vl import QwenVL


class PaddleOcrVL(QwenVL):
    """`PaddleOCRVLForConditionalGeneration`."""

    name = "paddleocr-vl"
    model_types: ClassVar[tuple[str, ...]] = ("paddleocr_vl",)


class KimiK25(QwenVL):
    """Kimi K2.5, images. They are padded on the right and below to whole tokens; by how much is not told."""

    name = "kimi-k2.5"
    model_types: ClassVar[tuple[str, ...]] = ("kimi_k25",)

    def split(self, count: int, media: Media) -> list[Piece]:
        _, high, wide = media.take("image_grid_thw")
        merge = self.config.vision_config.merge_kernel_size
        rows, columns = high // merge[0], wide // merge[1]
        if rows * columns != count:
            raise InputError(f"an image has {rows} x {columns} tokens, but the prompt has {count} for it")
        return [Piece.full(rows, columns)]
