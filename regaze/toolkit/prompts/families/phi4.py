"""Phi-4 multimodal: the crops of an image in one large grid, then a thumbnail, with newline tokens."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import MediaInputs, ViewTokens, VisionFamily, cells_with_row_ends
from regaze.toolkit.prompts.picture import Shares
from regaze.toolkit.prompts.pixels import Tiles
from regaze.toolkit.prompts.token_map import View


class Phi4(VisionFamily):
    """`Phi4MultimodalForCausalLM`.

    An image is fitted into the upper left of a canvas of whole crops; the large grid leaves out rows and
    columns of padding. The thumbnail shows the whole canvas: its box reaches beyond the image. Every row ends
    in a newline token, and a separator is between the grids.
    """

    name = "phi4-multimodal"
    model_types = ("phi4_multimodal",)
    media_inputs = ("image_sizes", "image_attention_mask")
    pixels = Tiles("image_pixel_values")
    measures_boxes = True

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.vision_config.image_token_id,)

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        views: list[ViewTokens] = []
        while count > 0:
            views += self._views(media)
            count -= len(views[-2].cells) + len(views[-1].cells)
        if count:
            raise InputError(f"the prompt has {-count} image tokens fewer than images of these sizes take")
        return views

    def measured_boxes(self, views: Sequence[View], pieces: Sequence[Shares | None]) -> list[Shares | None]:
        """The mask counts patches that are partly padding; the thumbnail shows where the image ends."""
        large, thumbnail = (view.box for view in views)
        if not pieces or pieces[0] is None or large is None or thumbnail is None:
            return [large, thumbnail]
        right, lower = (pieces[0][edge] * large[edge] / thumbnail[edge] for edge in (2, 3))
        return [(0.0, 0.0, right, lower), pieces[0]]

    def _views(self, media: MediaInputs) -> list[ViewTokens]:
        """The large grid and the thumbnail of the next image."""
        vision = self.config.vision_config
        high, wide = (int(side) // vision.crop_size for side in media.next("image_sizes"))
        (mask,) = media.next_entries("image_attention_mask", 1)  # [crops, patches, patches]
        crops = mask[1 : high * wide + 1].bool()  # after that of the thumbnail
        patches = crops.unflatten(0, (high, wide)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        height, width = int(patches[:, 0].sum()), int(patches[0].sum())  # of patches that are no padding
        rows, columns = -(-height // 2), -(-width // 2)
        side = -(-vision.image_size // vision.patch_size // 2)
        canvas = patches.shape
        box = (0.0, 0.0, 2 * columns / width, 2 * rows / height)
        large = ViewTokens((rows, columns), cells_with_row_ends(rows, columns), box)
        box = (0.0, 0.0, canvas[1] / width, canvas[0] / height)
        thumbnail = ViewTokens((side, side), [-1, *cells_with_row_ends(side, side)], box, same_image=True)
        return [large, thumbnail]
