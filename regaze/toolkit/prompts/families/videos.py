"""What families with videos beside images share: the frames of a video, one grid each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece, fill, runs


class Videos(Family):
    """A family whose videos have tokens of their own id; to be put before the family of its images.

    The views of a prompt's videos follow those of its images.

    Attributes:
        starts_with: tokens without a place before each frame's grid. ends_with: behind a video's last one.
    """

    starts_with: ClassVar[int] = 0
    ends_with: ClassVar[int] = 0

    def frame(self, height: int) -> tuple[int, int]:
        """(rows, columns) of a frame of `height` pixels, as the model receives it."""
        raise NotImplementedError

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (*super().image_token_ids, self.config.video_token_id)

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        video = self.config.video_token_id
        layout = super().lay_out([-1 if token == video else token for token in ids], media)
        videos = self._videos(media)
        for start, count in runs([token == video for token in ids]):
            fill(layout, range(start, start + count), videos)
        return layout

    def _videos(self, media: Media) -> Iterator[list[Piece]]:
        while True:
            (pixels,) = media.take_several("pixel_values_videos", 1)  # [frames, 3, H, W]
            rows, columns = self.frame(pixels.shape[-2])
            cells = [-1] * self.starts_with + list(range(rows * columns))
            last = len(pixels) - 1
            yield [
                Piece((rows, columns), cells + [-1] * self.ends_with * (i == last), continues=i > 0, frame=i)
                for i in range(last + 1)
            ]
