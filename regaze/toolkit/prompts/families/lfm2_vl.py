"""LFM2-VL: an image of any shape, or tiles with their row and column before them, and a thumbnail."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Layout, MediaInputs, ViewTokens, VisionFamily, tile_boxes
from regaze.toolkit.prompts.picture import WHOLE, Shares
from regaze.toolkit.prompts.pixels import Patches


class Lfm2Vl(VisionFamily):
    """LFM2-VL, with the special tokens that its processor writes around images by default.

    Its layers with short convolutions have no attention, so regaze does not touch them.
    """

    name = "lfm2-vl"
    model_types = ("lfm2_vl",)
    media_inputs = ("spatial_shapes",)
    pixels = Patches(grid="spatial_shapes", channels_last=True)
    nested_images = True

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout, parts = Layout.empty(len(ids)), list[tuple[int, int]]()
        spans = self.image_runs(ids)
        for i, (start, count) in enumerate(spans):
            parts.append((start, count))
            # One token is between two parts of an image; between images there are the end and the next start.
            if i + 1 < len(spans) and spans[i + 1][0] == start + count + 1:
                continue
            headers = [ids[first - 1] for first, _ in parts]
            for number, ((first, length), box) in enumerate(zip(parts, _boxes(headers), strict=True)):
                rows, columns = self._grid(media.next("spatial_shapes"), length)
                tokens = ViewTokens.row_major(rows, columns, box=box, same_image=number > 0)
                layout.add(tokens, range(first, first + length))
            parts = []
        return layout

    def _grid(self, shape: Sequence[int], count: int) -> tuple[int, int]:
        """Rows and columns of the tokens of a part that has `shape` (rows, columns) patches."""
        rows, columns = (-(-side // self.config.downsample_factor) for side in shape)
        if rows * columns != count:
            raise InputError(
                f"a part of an image has {rows} x {columns} tokens by its shape, but the prompt has {count}; "
                "the processor must write its image tokens (use_image_special_tokens)"
            )
        return rows, columns


def _boxes(headers: Sequence[int]) -> list[Shares]:
    """The box of each part of an image, from the token before it: tiles and a thumbnail, or one part alone.

    The ids of the tokens before tiles count columns and then rows, ten to a row: within a row each is one
    more than the last.
    """
    if len(headers) == 1:
        return [WHOLE]
    tiles = headers[:-1]
    columns = next((i for i in range(1, len(tiles)) if tiles[i] != tiles[i - 1] + 1), len(tiles))
    rows = len(tiles) // columns
    return [*tile_boxes(rows, columns), WHOLE]
