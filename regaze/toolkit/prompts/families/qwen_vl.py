"""Qwen-VL and models like it: images of any shape, whose grid is an output of the processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from regaze.errors import InputError, UnsupportedModelError
from regaze.toolkit.prompts.families.base import (
    Family,
    Layout,
    MediaInputs,
    ViewTokens,
    VisionFamily,
    cells_with_row_ends,
)
from regaze.toolkit.prompts.pixels import Patches, PixelLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class QwenVL(VisionFamily):
    """Qwen2-VL to Qwen4, the thinkers of Qwen-Omni, ERNIE 4.5 VL, EXAONE 4.5, HyperCLOVA X, LFM3-VL.

    An image is one run of tokens, each of a square of merged patches. The tokens of a video have another id:
    they are one run for all frames, or, in Qwen3-VL, one run per frame.
    """

    name = "qwen-vl"
    model_types: ClassVar[tuple[str, ...]] = (
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen3_vl_moe",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen4_exp",
        "qwen2_5_omni_thinker",
        "qwen3_omni_moe_thinker",
        "ernie4_5_vl_moe",
        "exaone4_5",
        "hyperclovax_vision_v2",
        "lfm3_vl",
    )
    media_inputs: ClassVar[tuple[str, ...]] = ("image_grid_thw",)
    pixels: ClassVar[PixelLayout] = Patches(merged=True)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        video = () if self._video_id is None else (self._video_id,)
        return super().image_token_ids + video

    @property
    def _video_id(self) -> int | None:
        names = ("video_token_id", "video_token_index")
        return next((getattr(self.config, name) for name in names if hasattr(self.config, name)), None)

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout, frames = (
            Layout.empty(len(ids)),
            list[ViewTokens](),
        )  # frames of a video that are still to come
        for start, count in self.image_runs(ids):
            if ids[start] == self._video_id:
                frames = frames or self._frames(media)
                views, frames = _first_frames(frames, count)
            else:
                views = self.split_run(count, media)
            layout.add_images(range(start, start + count), iter([views]))
        if frames:
            raise InputError(
                f"the prompt lacks the tokens of {len(frames)} frames that are in video_grid_thw"
            )
        return layout

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        frames, high, wide = media.next("image_grid_thw")
        merge = self.merge_size(media, "image")
        view = self.grid_tokens(high // merge, wide // merge)
        if frames != 1 or len(view.cells) != count:
            raise InputError(
                f"an image's grid is {frames} x {high} x {wide} patches, merged {merge} x {merge}, but the "
                f"prompt has {count} tokens for it"
            )
        return [view]

    def merge_size(self, media: MediaInputs, kind: str) -> int:
        """The side, in patches, of what a token of the next image or video shows; `kind` says which."""
        size: int = self.config.vision_config.spatial_merge_size
        return size

    def grid_tokens(self, rows: int, columns: int, **options: Any) -> ViewTokens:
        """The tokens of one image or frame."""
        return ViewTokens.row_major(rows, columns, **options)

    def _frames(self, media: MediaInputs) -> list[ViewTokens]:
        """The views of a video, each one frame or several that the model merges."""
        frames, high, wide = media.next("video_grid_thw")
        merge = self.merge_size(media, "video")
        count = frames // getattr(self.config.vision_config, "temporal_merge_size", 1)
        return [
            self.grid_tokens(high // merge, wide // merge, same_image=i > 0, frame=i) for i in range(count)
        ]


def _first_frames(frames: list[ViewTokens], count: int) -> tuple[list[ViewTokens], list[ViewTokens]]:
    """The frames that `count` tokens show, and the other frames. Raises InputError for parts of frames."""
    shown, left = 0, count
    while shown < len(frames) and (left > 0 or not frames[shown].cells):
        left -= len(frames[shown].cells)
        shown += 1
    if left:
        raise InputError(
            f"the prompt has {count} neighbouring tokens for a video of which {len(frames)} frames of "
            f"{len(frames[0].cells)} tokens are left, by video_grid_thw"
        )
    return frames[:shown], frames[shown:]


class HyV4(QwenVL):
    """Hunyuan 4: each row of a grid ends in a newline token."""

    name = "hy-v4"
    model_types = ("hy_v4_vl",)
    pixels = Patches()

    def grid_tokens(self, rows: int, columns: int, **options: Any) -> ViewTokens:
        return ViewTokens((rows, columns), cells_with_row_ends(rows, columns), **options)


class VideoLlama3(QwenVL):
    """VideoLLaMA 3: the processor chooses how many patches a token shows, and drops what hardly moves."""

    name = "videollama3"
    model_types = ("video_llama_3",)
    media_inputs = ("image_grid_thw", "image_merge_sizes")

    def merge_size(self, media: MediaInputs, kind: str) -> int:
        size: int = media.next(f"{kind}_merge_sizes")
        return size

    def _frames(self, media: MediaInputs) -> list[ViewTokens]:
        frames = super()._frames(media)
        return [self._kept(frame, media) for frame in frames]

    def _kept(self, frame: ViewTokens, media: MediaInputs) -> ViewTokens:
        """A frame without the cells of which the prompt has no token."""
        kept = media.next_entries("video_compression_mask", len(frame.cells)).tolist()
        return replace(frame, cells=[cell for cell, keep in zip(frame.cells, kept, strict=True) if keep])


class Glm4v(QwenVL):
    """GLM-4.1V, 4.5V, 4.6V and GLM-OCR, images. Videos have the image token, too, and count as images."""

    name = "glm4v"
    model_types = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")

    @property
    def _video_id(self) -> None:
        return None


class QwenOmni(Family):
    """Qwen-Omni with its voice: several models, of which the thinker reads the prompts and images."""

    name = "qwen-omni"
    model_types = ("qwen2_5_omni", "qwen3_omni_moe")

    def hook_target(self, model: PreTrainedModel) -> PreTrainedModel:
        raise UnsupportedModelError(
            f"{type(model).__name__} is several models; wrap the one that reads the prompt: "
            "regaze.wrap(model.thinker, processor)"
        )
