"""Pixtral, Mistral 3, LightOnOCR and Apertus 1.5: images of any shape, whose size the processor gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Layout, MediaInputs, ViewTokens, VisionFamily


class SizedImages(VisionFamily):
    """A grid in an image's own shape, row by row, without a token between rows or images."""

    media_inputs = ("image_sizes",)

    @property
    def cell_side(self) -> int:
        """Pixels on the side of what a token shows."""
        side: int = self.config.vision_config.patch_size * getattr(self.config, "spatial_merge_size", 1)
        return side

    def grid_of(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of an image of `size` (height, width) pixels."""
        return size[0] // self.cell_side, size[1] // self.cell_side

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        images, left = list[ViewTokens](), count
        while left > 0:
            rows, columns = self.grid_of(media.next("image_sizes"))
            images.append(ViewTokens.row_major(rows, columns))
            left -= rows * columns
        if left:
            grids = ", ".join(f"{view.grid[0]} x {view.grid[1]}" for view in images)
            raise InputError(
                f"the prompt has {count} neighbouring image tokens, but its images have {grids} by size"
            )
        return images


class LightOnOcr(SizedImages):
    """LightOnOCR 1 and 2."""

    name = "lighton-ocr"
    model_types = ("lighton_ocr",)


class RowRuns(SizedImages):
    """As `SizedImages`, but each row is a run of its own: an ordinary token stands between two rows."""

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout, lines = Layout.empty(len(ids)), self.image_runs(ids)
        while lines:
            rows, columns = self.grid_of(media.next("image_sizes"))
            image, lines = lines[:rows], lines[rows:]
            if [count for _, count in image] != [columns] * rows:
                raise InputError(
                    f"an image has {rows} rows of {columns} tokens by its size, but the prompt has rows of "
                    f"{[count for _, count in image]} tokens for it"
                )
            positions = [position for start, count in image for position in range(start, start + count)]
            layout.add(ViewTokens.row_major(rows, columns), positions)
        return layout


class Apertus(RowRuns):
    """Apertus 1.5: a quantised autoencoder turns an image into tokens of the model's vocabulary."""

    name = "apertus"
    model_types = ("apertus1p5",)

    @property
    def cell_side(self) -> int:
        side: int = self.config.vision_config.spatial_scale_factor
        return side


class Pixtral(RowRuns):
    """Mistral 3, and LLaVA's class with a Pixtral tower.

    [IMG_BREAK] after a row and [IMG_END] after the last one are ordinary tokens without image content.
    """

    name = "pixtral"
    model_types = ("mistral3",)

    @classmethod
    def matches(cls, config: Any) -> bool:
        tower = getattr(getattr(config, "vision_config", None), "model_type", None)
        return super().matches(config) or (config.model_type == "llava" and tower == "pixtral")
