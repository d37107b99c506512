"""Phi-4 multimodal: the crops of a picture in one grid, then the whole picture, with newline tokens."""

from __future__ import annotations

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Media, Piece


class Phi4(Family):
    """`Phi4MultimodalForCausalLM`.

    A picture is fitted onto the upper left of a canvas of whole crops; columns and rows of the large grid
    that are padding are left out. The small grid shows the whole canvas: its box reaches beyond the picture.
    Every row ends in a newline token, and a token of its own stands between the grids.
    """

    name = "phi4-multimodal"
    model_types = ("phi4_multimodal",)
    media = ("image_sizes", "image_attention_mask")

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.vision_config.image_token_id,)

    def split(self, count: int, media: Media) -> list[Piece]:
        pieces: list[Piece] = []
        while count > 0:
            pieces += self._views(media)
            count -= len(pieces[-2].cells) + len(pieces[-1].cells)
        if count:
            raise InputError(f"the prompt has {-count} image tokens fewer than pictures of these sizes take")
        return pieces

    def _views(self, media: Media) -> list[Piece]:
        vision = self.config.vision_config
        high, wide = (int(side) // vision.crop_size for side in media.take("image_sizes"))
        (mask,) = media.take_several("image_attention_mask", 1)  # [crops, patches, patches]
        crops = mask[1 : high * wide + 1].bool()  # behind that of the whole picture
        patches = crops.unflatten(0, (high, wide)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        kept = int(patches[:, 0].sum()), int(patches[0].sum())  # rows, columns of patches that are no padding
        rows, columns = (-(-side // 2) for side in kept)
        side = -(-vision.image_size // vision.patch_size // 2)
        canvas = patches.shape
        whole = (0.0, 0.0, canvas[1] / kept[1], canvas[0] / kept[0])
        small = Piece((side, side), [-1, *_lines(side, side)], whole, continues=True)
        large = (0.0, 0.0, 2 * columns / kept[1], 2 * rows / kept[0])
        return [Piece((rows, columns), _lines(rows, columns), large), small]


def _lines(rows: int, columns: int) -> list[int]:
    """Cells of rows that end in a token without a place."""
    return [cell for row in range(rows) for cell in (*range(row * columns, (row + 1) * columns), -1)]
