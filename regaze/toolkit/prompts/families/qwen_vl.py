"""Qwen-VL and models built like it: images of any shape, whose grid the processor tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from regaze.errors import InputError, UnsupportedModelError
from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece, runs
from regaze.toolkit.prompts.families.generic import image_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class QwenVL(Family):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, the thinkers of Qwen-Omni, and ERNIE 4.5 VL.

    An image is one run of tokens, each for a square of merged patches. A video has tokens of its own id: one
    run of all its frames, or, in Qwen3-VL, one run a frame.
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
    media = ("image_grid_thw",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        image = image_id(self.config)
        return tuple(token for token in (image, self._video_id) if token is not None)

    @property
    def _video_id(self) -> int | None:
        names = ("video_token_id", "video_token_index")
        return next((getattr(self.config, name) for name in names if hasattr(self.config, name)), None)

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        layout, frames = Layout.of(len(ids)), list[Piece]()  # of a video, not yet found in the prompt
        for start, count in runs(self.shows_image(ids)):
            if ids[start] == self._video_id:
                frames = frames or self._frames(media)
                pieces, frames = _first(frames, count)
            else:
                pieces = self.split(count, media)
            for piece in pieces:
                layout.add(piece, range(start, start + len(piece.cells)))
                start += len(piece.cells)
        if frames:
            raise InputError(f"the prompt lacks the tokens of {len(frames)} frames that video_grid_thw tells")
        return layout

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

    def _frames(self, media: Media) -> list[Piece]:
        """The views of a video: a frame each, or two or more that the model merges."""
        frames, high, wide = media.take("video_grid_thw")
        vision = self.config.vision_config
        merge, count = vision.spatial_merge_size, frames // getattr(vision, "temporal_merge_size", 1)
        return [Piece.full(high // merge, wide // merge, continues=i > 0, frame=i) for i in range(count)]


def _first(frames: list[Piece], count: int) -> tuple[list[Piece], list[Piece]]:
    """The frames that `count` tokens show, and the rest. Raises InputError for parts of frames."""
    per_frame = len(frames[0].cells)
    shown, rest = divmod(count, per_frame)
    if rest or shown > len(frames):
        raise InputError(
            f"the prompt has {count} neighbouring tokens for a video of which {len(frames)} frames of "
            f"{per_frame} tokens are left, by video_grid_thw"
        )
    return frames[:shown], frames[shown:]


class Glm4v(QwenVL):
    """GLM-4.1V, 4.5V and 4.6V, images. Videos are written with the image token and not told from images."""

    name = "glm4v"
    model_types = ("glm4v", "glm4v_moe", "glm46v")

    @property
    def _video_id(self) -> None:
        return None


class QwenOmni(Family):
    """Qwen-Omni with its voice: several models, of which the thinker reads prompts and looks at images."""

    name = "qwen-omni"
    model_types = ("qwen2_5_omni", "qwen3_omni_moe")

    def host(self, model: PreTrainedModel) -> PreTrainedModel:
        raise UnsupportedModelError(
            f"{type(model).__name__} is several models; wrap the one that reads the prompt: "
            "regaze.wrap(model.thinker, processor)"
        )
