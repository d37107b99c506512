"""Ovis2: a thumbnail, then tiles, with markers between them that give the grid of tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Layout, MediaInputs, ViewTokens, VisionFamily, tile_boxes


class Ovis2(VisionFamily):
    """`<IMG_START>` image `<IMG_GRID>` tile `<IMG_COL>` tile `<IMG_ROW>` tile `<IMG_COL>` tile `<IMG_END>`.

    The embedding of an image token is a mixture of visual words; markers have embeddings of their own.
    """

    name = "ovis2"
    model_types = ("ovis2",)

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        _, grid, _, row_end, image_end = self.config.visual_indicator_token_ids
        layout = Layout.empty(len(ids))
        tiles: list[range] = []
        rows = 1
        for start, count in self.image_runs(ids):
            side, positions = math.isqrt(count), range(start, start + count)
            if side * side != count:
                raise InputError(f"{count} neighbouring image tokens are no square tile of Ovis2")
            marker = next(iter(ids[start + count :]), None)
            if marker == grid:
                layout.add(ViewTokens.row_major(side, side), positions)
                tiles, rows = [], 1
                continue
            tiles.append(positions)
            rows += marker == row_end
            if marker == image_end:
                columns = len(tiles) // rows
                if rows * columns != len(tiles):
                    raise InputError(f"{len(tiles)} tiles in {rows} rows are no image of Ovis2")
                for tile, box in zip(tiles, tile_boxes(rows, columns), strict=True):
                    layout.add(ViewTokens.row_major(side, side, box=box, same_image=True), tile)
        return layout
