"""MiniCPM-V 4.6: the whole image, then slices of it, row by row."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece, runs
from regaze.toolkit.prompts.token_map import WHOLE, Shares


class MiniCPMV(Family):
    """MiniCPM-V 4.6, images. Its recurrent layers are left alone."""

    name = "minicpm-v"
    model_types = ("minicpmv4_6",)
    media = ("target_sizes",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        layout = Layout.of(len(ids))
        for image in _images(ids, runs([token == self.config.image_token_id for token in ids])):
            for number, ((start, count), box) in enumerate(zip(image, _boxes(image), strict=True)):
                rows, columns = _grid(media.take("target_sizes"), count)
                piece = Piece.full(rows, columns, box=box, continues=number > 0)
                layout.add(piece, range(start, start + count))
        return layout


Span = tuple[int, int]


def _images(ids: Sequence[int], spans: Sequence[Span]) -> list[list[Span]]:
    """Spans of each image: the one behind <image> and the slices that follow, behind <slice>."""
    images: list[list[Span]] = []
    for start, count in spans:
        if images and ids[start - 1] != ids[images[0][0][0] - 1]:
            images[-1].append((start, count))
        else:
            images.append([(start, count)])
    return images


def _boxes(image: Sequence[Span]) -> list[Shares]:
    """What the whole and the slices show. Between slices stand two tokens, between rows a newline as well."""
    slices = image[1:]
    ends = [start + count for start, count in slices]
    columns = next((i for i in range(1, len(slices)) if slices[i][0] > ends[i - 1] + 2), len(slices))
    places = [divmod(number, columns) for number in range(len(slices))]
    rows = len(slices) // columns if columns else 0
    return [
        WHOLE,
        *((c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r, c in places),
    ]


def _grid(patches: Sequence[int], count: int) -> tuple[int, int]:
    """Rows and columns of `count` tokens for (rows, columns) patches; 4 x 4 or, on request, 2 x 2 a token."""
    for merged in (4, 2):
        rows, columns = patches[0] // merged, patches[1] // merged
        if rows * columns == count:
            return rows, columns
    raise InputError(
        f"a part of an image is {patches[0]} x {patches[1]} patches, of which a token merges 4 x 4 or 2 x 2, "
        f"but the prompt has {count} tokens for it"
    )
