"""LLaVA 1.0 and 1.5: every image is one square, row-major grid of patch tokens."""

from __future__ import annotations

from regaze.errors import InputError
from regaze.toolkit.families.base import Family


class Llava(Family):
    """`LlavaForConditionalGeneration` and `VipLlavaForConditionalGeneration`."""

    name = "llava"
    model_types = ("llava", "vipllava")

    @property
    def image_token_id(self) -> int:
        return self.config.image_token_id

    def split_images(self, count: int) -> list[tuple[tuple[int, int], list[int]]]:
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        extra = int(
            getattr(self.config, "vision_feature_select_strategy", "default") == "full"
        )  # the class token
        per_image = side * side + extra
        if count % per_image:
            raise InputError(
                f"{count} neighbouring image tokens are not a whole number of images of {per_image} tokens "
                f"({side} x {side} patches{' and a class token' if extra else ''})"
            )
        cells = [-1] * extra + list(range(side * side))
        return [((side, side), cells) for _ in range(count // per_image)]
