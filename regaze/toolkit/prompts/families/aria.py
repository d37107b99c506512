"""Aria: latents that attend to all of an image, so that its tokens have no places."""

from __future__ import annotations

from regaze.toolkit.prompts.families.base import MediaInputs, ViewTokens, VisionFamily


class Aria(VisionFamily):
    """Aria. The latents of an image, and of its crops where it is split, are one run."""

    name = "aria"
    model_types = ("aria",)

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        return [ViewTokens.unplaced(count)]
