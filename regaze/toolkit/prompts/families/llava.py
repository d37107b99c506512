"""LLaVA 1.0 and 1.5, and others with one square, row-major grid of tokens for every image."""

from __future__ import annotations

import math
from typing import ClassVar

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Media, Piece, whole_images
from regaze.toolkit.prompts.families.videos import Videos

_WITHOUT_CLASS_TOKEN = ("siglip", "janus")  # towers; CLIP's and those like it have one


class Llava(Family):
    """LLaVA, VipLLaVA, DeepSeek-VL and Janus (images that they read); one token per patch.

    The features of a tower with a class token begin with it; the strategy "default" drops the first feature,
    whatever it is, "full" keeps it.
    """

    name: ClassVar[str] = "llava"
    model_types: ClassVar[tuple[str, ...]] = (
        "llava", "vipllava", "deepseek_vl", "deepseek_vl_hybrid", "janus"
    )  # fmt: skip

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def split(self, count: int, media: Media) -> list[Piece]:
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        classes = int(not vision.model_type.startswith(_WITHOUT_CLASS_TOKEN))
        cells = [-1] * classes + list(range(side * side))
        strategy = getattr(self.config, "vision_feature_select_strategy", "default" if classes else "full")
        if strategy == "default":
            cells = cells[1:]
        what = f"{side} x {side} patches{' and a class token' if -1 in cells else ''}"
        return [Piece((side, side), cells)] * whole_images(count, len(cells), what)


class VideoLlava(Videos, Llava):
    """Video-LLaVA: each frame of a video keeps its class token."""

    name = "video-llava"
    model_types = ("video_llava",)
    starts_with = 1

    def frame(self, height: int) -> tuple[int, int]:
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        return side, side


class FastVLM(Family):
    """FastVLM: a convolutional tower, whose stride no configuration tells; the number of tokens must do.

    It is `image_seq_length` where that divides the run (published configurations leave it at a default that
    is not theirs), else a run is one image.
    """

    name = "fastvlm"
    model_types = ("fast_vlm",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def split(self, count: int, media: Media) -> list[Piece]:
        said = self.config.image_seq_length
        per_image = said if count % said == 0 else count
        side = math.isqrt(per_image)
        if side * side != per_image:
            raise InputError(f"{count} neighbouring image tokens are no square grid, as FastVLM's images are")
        return [Piece.full(side, side)] * (count // per_image)
