"""Pixtral and Mistral 3: images of any shape, with a token that ends each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Layout, MediaInputs, ViewTokens, VisionFamily


class Pixtral(VisionFamily):
    """Mistral 3, and LLaVA's class with a Pixtral tower.

    [IMG_BREAK] after a row and [IMG_END] after the last one are ordinary tokens without image content.
    """

    name = "pixtral"
    model_types = ("mistral3",)
    media_inputs = ("image_sizes",)

    @classmethod
    def matches(cls, config: Any) -> bool:
        tower = getattr(getattr(config, "vision_config", None), "model_type", None)
        return super().matches(config) or (config.model_type == "llava" and tower == "pixtral")

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout, lines = Layout.empty(len(ids)), self.image_runs(ids)
        while lines:
            rows, columns = self._grid(media.next("image_sizes"))
            image, lines = lines[:rows], lines[rows:]
            if [count for _, count in image] != [columns] * rows:
                raise InputError(
                    f"an image has {rows} rows of {columns} tokens by its size, but the prompt has rows of "
                    f"{[count for _, count in image]} tokens for it"
                )
            positions = [position for start, count in image for position in range(start, start + count)]
            layout.add(ViewTokens.row_major(rows, columns), positions)
        return layout

    def _grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of an image of `size` (height, width) pixels."""
        cell = self.config.vision_config.patch_size * getattr(self.config, "spatial_merge_size", 1)
        return size[0] // cell, size[1] // cell
