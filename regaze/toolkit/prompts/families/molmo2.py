"""Molmo 2: a thumbnail, then overlapping crops in one grid; a column token ends each row."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Layout, MediaInputs, ViewTokens, VisionFamily


class Molmo2(VisionFamily):
    """`Molmo2ForConditionalGeneration`, images. The last row and column of a grid may show half a cell."""

    name = "molmo2"
    model_types = ("molmo2",)
    media_inputs = ("image_grids",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_patch_id,)

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout, start = Layout.empty(len(ids)), 0
        positions = [i for i, is_image in enumerate(self.image_mask(ids)) if is_image]
        while start < len(positions):
            small_rows, small_columns, rows, columns = (int(side) for side in media.next("image_grids"))
            thumbnail = ViewTokens.row_major(small_rows, small_columns)
            for tokens in (thumbnail, ViewTokens.row_major(rows, columns, same_image=True)):
                own = positions[start : start + len(tokens.cells)]
                if len(own) < len(tokens.cells):
                    raise InputError(
                        f"the prompt has {len(own)} tokens for a grid of {tokens.grid[0]} x {tokens.grid[1]}"
                    )
                layout.add(tokens, own)
                start += len(tokens.cells)
        return layout
