"""`Videos`: a mixin for families with videos; each frame of a video is one grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from regaze.toolkit.prompts.families.base import Family, Layout, MediaInputs, ViewTokens, runs


class Videos(Family):
    """A family whose videos have tokens of their own id. Among the bases it goes before that of the images.

    The views of a prompt's videos follow those of its images.

    Attributes:
        tokens_before_frame: tokens without a place before the grid of each frame.
        tokens_after_video: tokens without a place after the last frame.
    """

    tokens_before_frame: ClassVar[int] = 0
    tokens_after_video: ClassVar[int] = 0

    def frame_grid(self, height: int) -> tuple[int, int]:
        """(rows, columns) of a frame that the model receives with `height` pixels."""
        raise NotImplementedError

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (*super().image_token_ids, self.config.video_token_id)

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        video = self.config.video_token_id
        layout = super().read_layout([-1 if token == video else token for token in ids], media)
        videos = self._videos(media)
        for start, count in runs([token == video for token in ids]):
            layout.add_images(range(start, start + count), videos)
        return layout

    def _videos(self, media: MediaInputs) -> Iterator[list[ViewTokens]]:
        while True:
            (pixels,) = media.next_entries("pixel_values_videos", 1)  # [frames, 3, H, W]
            rows, columns = self.frame_grid(pixels.shape[-2])
            cells = [-1] * self.tokens_before_frame + list(range(rows * columns))
            frames = [cells] * (len(pixels) - 1) + [cells + [-1] * self.tokens_after_video]
            yield [
                ViewTokens((rows, columns), cells, same_image=number > 0, frame=number)
                for number, cells in enumerate(frames)
            ]
