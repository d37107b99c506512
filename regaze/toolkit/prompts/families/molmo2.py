"""Molmo 2: the whole picture, then its overlapping crops in one grid; rows end in a column token."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece


class Molmo2(Family):
    """`Molmo2ForConditionalGeneration`, images. The last row and column of a grid may show half a cell."""

    name = "molmo2"
    model_types = ("molmo2",)
    media = ("image_grids",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_patch_id,)

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        layout, start = Layout.of(len(ids)), 0
        places = [i for i, token in enumerate(ids) if token == self.config.image_patch_id]
        while start < len(places):
            small_rows, small_columns, rows, columns = (int(side) for side in media.take("image_grids"))
            whole = Piece.full(small_rows, small_columns)
            for piece in (whole, Piece.full(rows, columns, continues=True)):
                here = places[start : start + len(piece.cells)]
                if len(here) < len(piece.cells):
                    raise InputError(
                        f"the prompt has {len(here)} tokens for a grid of {piece.grid[0]} x {piece.grid[1]}"
                    )
                layout.add(piece, here)
                start += len(piece.cells)
        return layout
