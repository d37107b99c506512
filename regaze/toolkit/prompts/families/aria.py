"""Aria: latents that look at all of an image, so that its tokens have no places."""

from __future__ import annotations

from regaze.toolkit.prompts.families.base import Family, Media, Piece
from regaze.toolkit.prompts.families.generic import image_id


class Aria(Family):
    """Aria; the latents of an image, and of its crops where it was split, are one run."""

    name = "aria"
    model_types = ("aria",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        image = image_id(self.config)
        return () if image is None else (image,)

    def split(self, count: int, media: Media) -> list[Piece]:
        return [Piece.placeless(count)]
