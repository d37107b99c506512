"""LLaVA 1.0 and 1.5: every image is one square, row-major grid of patch tokens."""

from __future__ import annotations

from regaze.toolkit.families.base import Family, Media, Piece, whole_images


class Llava(Family):
    """`LlavaForConditionalGeneration` and `VipLlavaForConditionalGeneration`."""

    name = "llava"
    model_types = ("llava", "vipllava")

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def split(self, count: int, media: Media) -> list[Piece]:
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        # the class token
        extra = int(getattr(self.config, "vision_feature_select_strategy", "default") == "full")
        what = f"{side} x {side} patches{' and a class token' if extra else ''}"
        piece = Piece((side, side), [-1] * extra + list(range(side * side)))
        return [piece] * whole_images(count, side * side + extra, what)
