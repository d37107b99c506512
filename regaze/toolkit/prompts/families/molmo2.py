"""Molmo 2: a thumbnail, then overlapping crops in one grid; a column token ends each row."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Layout, MediaInputs, ViewTokens, VisionFamily
from regaze.toolkit.prompts.picture import WHOLE, Shares
from regaze.toolkit.prompts.pixels import Patches


class Molmo2(VisionFamily):
    """`Molmo2ForConditionalGeneration`, images. The last row and column of a grid may show half a cell."""

    name = "molmo2"
    model_types = ("molmo2",)
    media_inputs = ("image_grids", "image_token_pooling")
    pixels = Patches(grid="", channels_last=True)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_patch_id,)

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout, start = Layout.empty(len(ids)), 0
        positions = [i for i, is_image in enumerate(self.image_mask(ids)) if is_image]
        while start < len(positions):
            small_rows, small_columns, rows, columns = (int(side) for side in media.next("image_grids"))
            for number, grid in enumerate(((small_rows, small_columns), (rows, columns))):
                own = positions[start : start + grid[0] * grid[1]]
                if len(own) < grid[0] * grid[1]:
                    raise InputError(f"the prompt has {len(own)} tokens for a grid of {grid[0]} x {grid[1]}")
                box = _box(*grid, media.next_entries("image_token_pooling", len(own))[-1].tolist())
                layout.add(ViewTokens.row_major(*grid, box=box, same_image=number > 0), own)
                start += len(own)
        return layout


def _box(rows: int, columns: int, last: Sequence[int]) -> Shares:
    """What tokens of 2 x 2 patches show: those of the last column and row may have one patch, and a -1.

    Args:
        last: the patches of the last token, or -1.
    """
    if len(last) != 4:
        return WHOLE
    wide, high = 2 * columns - (last[1] < 0), 2 * rows - (last[2] < 0)
    return (0.0, 0.0, 2 * columns / wide, 2 * rows / high)
