"""Qwen-VL and models like it: images of any shape, whose grid is an output of the processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from regaze.errors import InputError, UnsupportedModelError
from regaze.toolkit.prompts.families.base import Family, Layout, MediaInputs, ViewTokens, VisionFamily

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class QwenVL(VisionFamily):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, the thinkers of Qwen-Omni, and ERNIE 4.5 VL.

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
        "qwen2_5_omni_thinker",
        "qwen3_omni_moe_thinker",
        "ernie4_5_vl_moe",
    )
    media_inputs = ("image_grid_thw",)

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
        merge = self.config.vision_config.spatial_merge_size
        rows, columns = high // merge, wide // merge
        if frames != 1 or rows * columns != count:
            raise InputError(
                f"an image's grid is {frames} x {high} x {wide} patches, merged {merge} x {merge}, but the "
                f"prompt has {count} tokens for it"
            )
        return [ViewTokens.row_major(rows, columns)]

    def _frames(self, media: MediaInputs) -> list[ViewTokens]:
        """The views of a video, each one frame or several that the model merges."""
        frames, high, wide = media.next("video_grid_thw")
        vision = self.config.vision_config
        merge, count = vision.spatial_merge_size, frames // getattr(vision, "temporal_merge_size", 1)
        return [
            ViewTokens.row_major(high // merge, wide // merge, same_image=i > 0, frame=i)
            for i in range(count)
        ]


def _first_frames(frames: list[ViewTokens], count: int) -> tuple[list[ViewTokens], list[ViewTokens]]:
    """The frames that `count` tokens show, and the other frames. Raises InputError for parts of frames."""
    per_frame = len(frames[0].cells)
    shown, rest = divmod(count, per_frame)
    if rest or shown > len(frames):
        raise InputError(
            f"the prompt has {count} neighbouring tokens for a video of which {len(frames)} frames of "
            f"{per_frame} tokens are left, by video_grid_thw"
        )
    return frames[:shown], frames[shown:]


class Glm4v(QwenVL):
    """GLM-4.1V, 4.5V and 4.6V, images. Videos have the image token, too, and count as images."""

    name = "glm4v"
    model_types = ("glm4v", "glm4v_moe", "glm46v")

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
