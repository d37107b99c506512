"""Pixtral and Mistral 3: images of any shape, with a token that ends each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece, runs
from regaze.toolkit.prompts.families.generic import image_id


class Pixtral(Family):
    """Mistral 3, and LLaVA's class around a Pixtral tower.

    [IMG_BREAK] behind a row and [IMG_END] behind the last are ordinary tokens that carry no image content.
    """

    name = "pixtral"
    model_types = ("mistral3",)
    media = ("image_sizes",)

    @classmethod
    def serves(cls, config: Any) -> bool:
        tower = getattr(getattr(config, "vision_config", None), "model_type", None)
        return super().serves(config) or (config.model_type == "llava" and tower == "pixtral")

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        image = image_id(self.config)
        return () if image is None else (image,)

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        layout, lines = Layout.of(len(ids)), runs([token in self.image_token_ids for token in ids])
        while lines:
            rows, columns = self._grid(media.take("image_sizes"))
            image, lines = lines[:rows], lines[rows:]
            if [count for _, count in image] != [columns] * rows:
                raise InputError(
                    f"an image has {rows} rows of {columns} tokens by its size, but the prompt has rows of "
                    f"{[count for _, count in image]} tokens for it"
                )
            places = [place for start, count in image for place in range(start, start + count)]
            layout.add(Piece.full(rows, columns), places)
        return layout

    def _grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of an image of `size` (height, width) pixels."""
        cell = self.config.vision_config.patch_size * getattr(self.config, "spatial_merge_size", 1)
        return size[0] // cell, size[1] // cell
