"""Ovis2: a small picture of the whole, then its tiles, set off by tokens that tell their grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece, runs
from regaze.toolkit.prompts.families.idefics import tile_box


class Ovis2(Family):
    """`<IMG_START>` whole `<IMG_GRID>` tile `<IMG_COL>` tile `<IMG_ROW>` tile `<IMG_COL>` tile `<IMG_END>`.

    An image token is a mixture of visual words; the marks between them have embeddings of their own.
    """

    name = "ovis2"
    model_types = ("ovis2",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        _, grid, _, row_end, image_end = self.config.visual_indicator_token_ids
        layout = Layout.of(len(ids))
        tiles: list[range] = []
        rows = 1
        for start, count in runs([token == self.config.image_token_id for token in ids]):
            side, places = math.isqrt(count), range(start, start + count)
            if side * side != count:
                raise InputError(f"{count} neighbouring image tokens are no square tile of Ovis2")
            mark = next(iter(ids[start + count :]), None)
            if mark == grid:
                layout.add(Piece.full(side, side), places)
                tiles, rows = [], 1
                continue
            tiles.append(places)
            rows += mark == row_end
            if mark == image_end:
                columns = len(tiles) // rows
                if rows * columns != len(tiles):
                    raise InputError(f"{len(tiles)} tiles in {rows} rows are no picture of Ovis2")
                for number, tile in enumerate(tiles):
                    box = tile_box(number, rows, columns)
                    layout.add(Piece.full(side, side, box=box, continues=True), tile)
        return layout
