"""LLaVA 1.0 and 1.5, and others in which every image is one square, row-major grid of tokens."""

from __future__ import annotations

import math
from typing import ClassVar

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import MediaInputs, ViewTokens, VisionFamily, count_images
from regaze.toolkit.prompts.families.videos import Videos
from regaze.toolkit.prompts.pixels import Tiles

#: Types of vision towers without a class token; those of CLIP and its like have one.
_WITHOUT_CLASS_TOKEN = ("siglip", "janus")


class Llava(VisionFamily):
    """LLaVA, VipLLaVA, DeepSeek-VL and Janus (images as input); one token per patch.

    The class token of a tower, if it has one, is the first feature. The strategy "default" drops the first
    feature, whatever it is; "full" does not.
    """

    name: ClassVar[str] = "llava"
    model_types: ClassVar[tuple[str, ...]] = (
        "llava", "vipllava", "deepseek_vl", "deepseek_vl_hybrid", "janus"
    )  # fmt: skip

    measures_boxes = True

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        classes = int(not vision.model_type.startswith(_WITHOUT_CLASS_TOKEN))
        cells = [-1] * classes + list(range(side * side))
        strategy = getattr(self.config, "vision_feature_select_strategy", "default" if classes else "full")
        if strategy == "default":
            cells = cells[1:]
        what = f"{side} x {side} patches{' and a class token' if -1 in cells else ''}"
        return [ViewTokens((side, side), cells)] * count_images(count, len(cells), what)


class VideoLlava(Videos, Llava):
    """Video-LLaVA: each frame of a video has its class token."""

    name = "video-llava"
    model_types = ("video_llava",)
    pixels = Tiles("pixel_values_images")
    tokens_before_frame = 1

    def frame_grid(self, height: int) -> tuple[int, int]:
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        return side, side


class FastVLM(VisionFamily):
    """FastVLM: a convolutional tower whose stride is not in the configuration.

    An image has `image_seq_length` tokens where that divides the run (published configurations have a wrong
    default there); otherwise a run is one image.
    """

    name = "fastvlm"
    model_types = ("fast_vlm",)
    measures_boxes = True

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        configured = self.config.image_seq_length
        per_image = configured if count % configured == 0 else count
        side = math.isqrt(per_image)
        if side * side != per_image:
            raise InputError(f"{count} neighbouring image tokens are no square grid, as FastVLM's images are")
        return [ViewTokens.row_major(side, side)] * (count // per_image)
