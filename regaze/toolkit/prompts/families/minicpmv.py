"""MiniCPM-V 4.6: a thumbnail, then slices of the image, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Layout, MediaInputs, ViewTokens, VisionFamily, tile_boxes
from regaze.toolkit.prompts.picture import WHOLE, Shares
from regaze.toolkit.prompts.pixels import Patches


class _Strip(Patches):
    """Patches side by side, [1, 3, side, patches * side]."""

    def patches(self, features: Mapping[str, Any]) -> Tensor:
        strip: Tensor = features[self.name][0]
        return strip.unflatten(2, (-1, strip.shape[1])).permute(2, 0, 1, 3).flatten(1)


class MiniCPMV(VisionFamily):
    """MiniCPM-V 4.6, images. Its recurrent layers have no attention, so regaze does not touch them."""

    name = "minicpm-v"
    model_types = ("minicpmv4_6",)
    media_inputs = ("target_sizes",)
    pixels = _Strip(grid="target_sizes")

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout = Layout.empty(len(ids))
        for image in _images(ids, self.image_runs(ids)):
            for number, ((start, count), box) in enumerate(zip(image, _boxes(image), strict=True)):
                rows, columns = _grid(media.next("target_sizes"), count)
                tokens = ViewTokens.row_major(rows, columns, box=box, same_image=number > 0)
                layout.add(tokens, range(start, start + count))
        return layout


Span = tuple[int, int]


def _images(ids: Sequence[int], spans: Sequence[Span]) -> list[list[Span]]:
    """The spans of each image: the one after <image>, then those after <slice>."""
    images: list[list[Span]] = []
    for start, count in spans:
        if images and ids[start - 1] != ids[images[0][0][0] - 1]:
            images[-1].append((start, count))
        else:
            images.append([(start, count)])
    return images


def _boxes(image: Sequence[Span]) -> list[Shares]:
    """The boxes of an image's spans. Between slices there are two tokens; between rows also a newline."""
    slices = image[1:]
    ends = [start + count for start, count in slices]
    columns = next((i for i in range(1, len(slices)) if slices[i][0] > ends[i - 1] + 2), len(slices))
    rows = len(slices) // columns if columns else 0
    return [WHOLE, *tile_boxes(rows, columns)]


def _grid(patches: Sequence[int], count: int) -> tuple[int, int]:
    """Rows and columns of `count` tokens of (rows, columns) patches; a token merges 4 x 4 or 2 x 2."""
    for merged in (4, 2):
        rows, columns = patches[0] // merged, patches[1] // merged
        if rows * columns == count:
            return rows, columns
    raise InputError(
        f"a part of an image is {patches[0]} x {patches[1]} patches, of which a token merges 4 x 4 or 2 x 2, "
        f"but the prompt has {count} tokens for it"
    )
