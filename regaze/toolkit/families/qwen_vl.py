"""Qwen-VL and models built like it: images of any shape, whose grid the processor tells."""

from __future__ import annotations

from regaze.errors import InputError
from regaze.toolkit.families.base import Family, Media, Piece


class QwenVL(Family):
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL: one run of tokens per image, patches merged in squares."""

    name = "qwen-vl"
    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
    media = ("image_grid_thw",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def split(self, count: int, media: Media) -> list[Piece]:
        frames, high, wide = media.take("image_grid_thw")
        merge = self.config.vision_config.spatial_merge_size
        rows, columns = high // merge, wide // merge
        if frames != 1 or rows * columns != count:
            raise InputError(
                f"an image's grid is {frames} x {high} x {wide} patches, merged {merge} x {merge}, but the "
                f"prompt has {count} tokens for it"
            )
        return [Piece.full(rows, columns)]
