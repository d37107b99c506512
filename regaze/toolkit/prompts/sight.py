"""`Sight`: what a model receives of an image, and which part of the image each view shows.

Both are measured: `measure` sends test pictures of the image's size through the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from regaze.errors import UnsupportedModelError
from regaze.toolkit.prompts.families import Family
from regaze.toolkit.prompts.geometry import Geometry, measure
from regaze.toolkit.prompts.images import SEEN
from regaze.toolkit.prompts.picture import Picture, Shares, rounded
from regaze.toolkit.prompts.pixels import read_pieces, to_image
from regaze.toolkit.prompts.token_map import TokenMap, View

#: Sizes of images whose geometries are kept.
_SIZES = 1024

Geometries = tuple[Geometry | None, ...]
Size = tuple[int, int]


class Sight:
    """What a model receives of images.

    Args:
        family: of the model. image_processor: of its processor.
        process: makes the processor's outputs for one image in a prompt.
    """

    family: Family

    def __init__(
        self, family: Family, image_processor: Any, process: Callable[[Image.Image], Mapping[str, Any]]
    ):
        self.family, self._image_processor, self._process = family, image_processor, process
        self._geometries = lru_cache(maxsize=_SIZES)(self._measured)

    def pieces(self, image: Image.Image) -> list[Tensor]:
        """What the model receives of an image alone in a prompt: tiles, thumbnails, or one piece.

        Returns:
            [3, H, W] each, in fp32, mostly in [0, 1].
        """
        return read_pieces(self.family.pixels, self._image_processor, self._process(image))

    def seen(self, image: Image.Image) -> Image.Image:
        """The image as the model receives it: in its resolution, without what is cropped away or padding.

        Raises:
            UnsupportedModelError: the pieces that the model receives are not scaled parts of the image.
        """
        pieces, geometries = self.pieces(image), self._geometries(image.size)
        parts = [
            (piece, geometry)
            for piece, geometry in zip(pieces, geometries, strict=True)
            if geometry is not None and geometry.seen == (piece.shape[2], piece.shape[1])
        ]
        if not parts:
            raise UnsupportedModelError(
                f"{type(self._image_processor).__name__} does more than pad, resize and crop an image of "
                f"{image.width} x {image.height} pixels: what the model sees of it cannot be drawn"
            )
        picture = to_image(_joined(parts))
        picture.info[SEEN] = True
        return picture

    def pictures(
        self, features: Mapping[str, Any], views: Sequence[Sequence[View]]
    ) -> list[list[Image.Image]]:
        """What the model receives of the images of each prompt of a batch: whole images, or tiles of them.

        Args:
            features: the processor's outputs. views: of each prompt, as in `TokenMap`.

        Raises:
            InputError: there are no pixels.
            UnsupportedModelError: which pixels belong to which prompt is not known.
        """
        layout, processor = self.family.pixels, self._image_processor
        pieces = [to_image(piece) for piece in read_pieces(layout, processor, features)]
        counts, shown = [len(each) for each in views], [True] * len(pieces)
        if sum(counts) != len(pieces):  # tiles that share a view, and a row of them per image
            rows, images = features[layout.name], [len({view.image for view in each}) for each in views]
            if not isinstance(rows, Tensor) or rows.dim() != 5 or len(rows) != sum(images):
                raise UnsupportedModelError(
                    f"{type(processor).__name__} makes {len(pieces)} pictures of {sum(images)} images, and "
                    "which of them belong to which prompt is not known"
                )
            counts = [count * rows.shape[1] for count in images]
            shown = (
                rows.flatten(0, 1).flatten(1).any(1).tolist()
            )  # a batch pads images of few tiles with zeros
        kept = iter(zip(pieces, shown, strict=True))
        return [[piece for piece, seen in islice(kept, count) if seen] for count in counts]

    def picture(self, size: Size) -> Picture | None:
        """What is known of an image of `size`; None where it is not known what the model receives of it."""
        if not self.family.measures_boxes:
            return Picture(size)
        known = [geometry for geometry in self._geometries(size) if geometry is not None]
        if not known:
            return None
        left, upper, right, lower, across, down = _canvas(known)
        seen = max(1, round((right - left) * across)), max(1, round((lower - upper) * down))
        window = rounded((left / size[0], upper / size[1], right / size[0], lower / size[1]))
        return Picture(size, seen, window)

    def placed(self, views: Sequence[View], sizes: Sequence[Size]) -> tuple[View, ...]:
        """The views of a prompt about images of these sizes, with boxes in fractions of the images."""
        pictures = [self.picture(size) for size in sizes]
        groups = {number: [view for view in views if view.image == number] for number in range(len(pictures))}
        if {view.image for view in views} != groups.keys():  # videos, which count as images, or crops
            return tuple(views)
        boxes = {number: iter(self._boxes(group, pictures[number])) for number, group in groups.items()}
        return tuple(
            replace(view, box=next(boxes[view.image]), picture=pictures[view.image]) for view in views
        )

    def placed_like(self, tokens: TokenMap, others: TokenMap) -> TokenMap:
        """A map of keys of cross-attention, given that of the prompts, which knows the images."""
        views = []
        for number, own in enumerate(tokens.views):
            pictures = {view.image: view.picture for view in others.views[number % others.batch]}
            sizes = [picture.size for _, picture in sorted(pictures.items()) if picture is not None]
            views.append(self.placed(own, sizes) if len(sizes) == len(pictures) else own)
        return replace(tokens, views=tuple(views))

    def _boxes(self, views: Sequence[View], picture: Picture | None) -> list[Shares | None]:
        """The boxes of the views of one image: those of the layout, or measured ones."""
        unknown = any(view.box is None and all(view.grid) for view in views)
        if picture is None or not (self.family.measures_boxes or unknown):
            return [view.box for view in views]
        known = self._geometries(picture.size)
        pieces = [None if geometry is None else geometry.shares for geometry in known]
        return self.family.measured_boxes(views, pieces)

    def _measured(self, size: Size) -> Geometries:
        try:
            return tuple(measure(self.pieces, size))
        except Exception:  # other people's processors can fail in any way
            return ()


def _canvas(geometries: Sequence[Geometry]) -> tuple[float, float, float, float, float, float]:
    """The part of the image that pieces show together, in its pixels, and the finest scale of both axes."""
    width, height = geometries[0].original
    boxes = [geometry.box for geometry in geometries]
    left, upper = (max(0.0, min(box[axis] for box in boxes)) for axis in (0, 1))
    right, lower = (min(side, max(box[2 + i] for box in boxes)) for i, side in ((0, width), (1, height)))
    across, down = (max(geometry.scale[axis] for geometry in geometries) for axis in (0, 1))
    return left, upper, right, lower, across, down


def _joined(parts: Sequence[tuple[Tensor, Geometry]]) -> Tensor:
    """One picture [3, H, W] of pieces, in the resolution of the finest, which cover the others."""
    left, upper, right, lower, across, down = _canvas([geometry for _, geometry in parts])
    canvas = torch.zeros(3, max(1, round((lower - upper) * down)), max(1, round((right - left) * across)))
    for piece, geometry in sorted(parts, key=lambda part: part[1].scale):
        x0, y0, x1, y1 = geometry.box
        x0, y0, x1, y1 = max(x0, left), max(y0, upper), min(x1, right), min(y1, lower)  # without padding
        (from_x, to_x), (from_y, to_y) = (
            [round(edge * geometry.scale[axis] + geometry.offset[axis]) for edge in edges]
            for axis, edges in ((0, (x0, x1)), (1, (y0, y1)))
        )
        columns = slice(round((x0 - left) * across), round((x1 - left) * across))
        rows = slice(round((y0 - upper) * down), round((y1 - upper) * down))
        target, source = canvas[:, rows, columns], piece[:, from_y:to_y, from_x:to_x]
        if not (target.numel() and source.numel()):
            continue
        if source.shape != target.shape:
            source = F.interpolate(source[None], target.shape[1:], mode="bilinear", antialias=True)[0]
        target.copy_(source)
    return canvas
