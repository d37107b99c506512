"""LFM2-VL: an image of any shape, or tiles with their row and column written before them and a thumbnail."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece, runs
from regaze.toolkit.prompts.token_map import WHOLE, Shares


class Lfm2Vl(Family):
    """LFM2-VL, with the special tokens that its processor writes around images by default.

    Layers with short convolutions instead of attention are left alone.
    """

    name = "lfm2-vl"
    model_types = ("lfm2_vl",)
    media = ("spatial_shapes",)
    nested_images = True

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        layout, parts = Layout.of(len(ids)), list[tuple[int, int]]()
        spans = runs([token == self.config.image_token_id for token in ids])
        for i, (start, count) in enumerate(spans):
            parts.append((start, count))
            # One token stands between two parts of an image, its end and the next one's start between images.
            if i + 1 < len(spans) and spans[i + 1][0] == start + count + 1:
                continue
            headers = [ids[first - 1] for first, _ in parts]
            for number, ((first, length), box) in enumerate(zip(parts, _boxes(headers), strict=True)):
                rows, columns = self._grid(media.take("spatial_shapes"), length)
                piece = Piece.full(rows, columns, box=box, continues=number > 0)
                layout.add(piece, range(first, first + length))
            parts = []
        return layout

    def _grid(self, shape: Sequence[int], count: int) -> tuple[int, int]:
        """Rows and columns of tokens of a part with `shape` (rows, columns) patches."""
        rows, columns = (-(-side // self.config.downsample_factor) for side in shape)
        if rows * columns != count:
            raise InputError(
                f"a part of an image has {rows} x {columns} tokens by its shape, but the prompt has {count}; "
                "the processor must write its image tokens (use_image_special_tokens)"
            )
        return rows, columns


def _boxes(headers: Sequence[int]) -> list[Shares]:
    """What the parts of an image show, by the token before each: tiles, then a thumbnail, or one part alone.

    The ids of the tiles' tokens count columns and then rows, ten to a row, so that in a row each is one more
    than the last.
    """
    if len(headers) == 1:
        return [WHOLE]
    tiles = headers[:-1]
    columns = next((i for i in range(1, len(tiles)) if tiles[i] != tiles[i - 1] + 1), len(tiles))
    rows = len(tiles) // columns
    boxes = [
        (c / columns, r / rows, (c + 1) / columns, (r + 1) / rows)
        for r in range(rows)
        for c in range(columns)
    ]
    return [*boxes, WHOLE]
