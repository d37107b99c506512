"""Idefics: images that are resampled, or cut into tiles that a thumbnail follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import (
    Layout,
    MediaInputs,
    ViewTokens,
    VisionFamily,
    count_images,
    tile_boxes,
)
from regaze.toolkit.prompts.picture import WHOLE


class Idefics2(VisionFamily):
    """Idefics2: a perceiver turns every image into the same number of latents, which have no place in it.

    Where its processor splits images, the four quarters and the whole image count as five images.
    """

    name = "idefics2"
    model_types = ("idefics2",)
    nested_images = True

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        latents = self.config.perceiver_config.resampler_n_latents
        number = count_images(count, latents, "latents of the resampler")
        return [ViewTokens.unplaced(latents)] * number


class Idefics3(VisionFamily):
    """Idefics3 and SmolVLM: `<fake><row_1_col_1>` and its tokens for each tile, a line break after each row
    of tiles, `<fake><global-img>` and the tokens of the thumbnail, `<fake>`.

    The name of a tile is one token or several, depending on the tokenizer. So the grid of tiles is read from
    what is between them: `<fake>` alone, or a line break before it.
    """

    name = "idefics3"
    model_types = ("idefics3", "smolvlm")
    nested_images = True

    @property
    def side(self) -> int:
        """Rows and columns of the tokens of one tile."""
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size // self.config.scale_factor

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout, size = Layout.empty(len(ids)), self.side**2
        found = self.image_runs(ids)
        wrong = next((count for _, count in found if count != size), None)
        if wrong is not None:
            raise InputError(
                f"a tile of this model has {self.side} x {self.side} tokens, not {wrong}: the processor's "
                "image_seq_len and the model's configuration do not belong together"
            )
        for starts, row_ends in _images(ids, found):
            rows = sum(row_ends)
            columns = len(row_ends) // rows if rows else 0
            if rows * columns != len(row_ends):
                raise InputError(f"{len(row_ends)} tiles in {rows} rows are no image of this model")
            boxes = [*tile_boxes(rows, columns), WHOLE]
            for i, (start, box) in enumerate(zip(starts, boxes, strict=True)):
                tokens = ViewTokens.row_major(self.side, self.side, box=box, same_image=i > 0)
                layout.add(tokens, range(start, start + size))
        return layout


def _images(ids: Sequence[int], found: Sequence[tuple[int, int]]) -> Iterator[tuple[list[int], list[bool]]]:
    """For each image the starts of its runs, the thumbnail last, and whether each tile ends a row."""
    starts: list[int] = []
    row_ends: list[bool] = []
    fake = next(iter(ids[sum(found[-1]) :]), -1) if found else -1  # the token after the last thumbnail
    for (start, count), (following, _) in pairwise([*found, (len(ids), 0)]):
        gap = list(ids[start + count : following])
        starts.append(start)
        if following == len(ids) or gap.count(fake) > 1:  # one ends this image, one begins the next
            yield starts, row_ends
            starts, row_ends = [], []
        else:
            row_ends.append(gap[0] != fake)
