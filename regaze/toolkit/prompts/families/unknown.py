"""Unknown families: a guess where the configuration names the image token, an error otherwise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from regaze.errors import GuessWarning, InputError, UnsupportedModelError
from regaze.toolkit.prompts.families.base import Family, Layout, MediaInputs, ViewTokens, VisionFamily
from regaze.toolkit.prompts.pixels import PIXELS

#: Settings of models that make the same number of tokens of every image, none of which shows one place.
_RESAMPLERS = (
    *("perceiver_config", "resampler_config", "qformer_config"),
    *("num_query_tokens", "latent_query_num", "projector_patch_to_query_dict"),
)
#: Arguments with the numbers of patches of each image: (high, wide), or (frames, high, wide).
_GRIDS = (
    *("image_grid_thw", "grid_thw", "image_grid_thws", "grid_thws"),
    *("image_grid_hws", "image_grid_hw", "grid_hws", "spatial_shapes"),
)


class _Size(NamedTuple):
    """The size of an image in patches, or in pixels, and which argument says so."""

    high: int
    wide: int
    source: str
    in_pixels: bool = False


class GuessedFamily(VisionFamily):
    """A vision-language model of an unknown family whose configuration names the id of its image tokens.

    Each run of them is one image, row by row in a grid of the image's shape, which is read from the model's
    inputs; without any, a square. Where something contradicts this, tokens get no places, and a warning says
    why. Once an image has been seen to have several runs, it holds for no other.
    """

    name = "unknown vision-language"
    media_inputs = ("pixel_values",)
    is_guess = True

    def __init__(self, config: Any):
        super().__init__(config)
        self._warned = set[str]()  # each warning once per wrapped model
        self._refuted: str | None = None  # how an image was seen to have several runs

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        layout, runs = Layout.empty(len(ids)), self.image_runs(ids)
        if not runs:
            return layout
        self._warn(
            media,
            f"regaze does not know the family {self.config.model_type!r} and guesses that every run of token "
            f"{self.image_token_id} is one image, in a grid of the shape of its pixels",
        )
        counts, contradiction = [count for _, count in runs], self._contradiction(media)
        views = [ViewTokens.unplaced(count, same_image=i > 0) for i, count in enumerate(counts)]
        if contradiction is None:
            views = [ViewTokens.unplaced(count) for count in counts]
            try:
                sizes = [self._next_size(media) for _ in counts]
                views = [self._view(count, size) for count, size in zip(counts, sizes, strict=True)]
            except InputError as error:
                contradiction = str(error)
        if contradiction is not None:
            self._warn(
                media,
                f"{contradiction}, so image tokens of this {self.config.model_type!r} model get no grid: "
                "pass roles of your own, gaze.using(..., tokens=TokenMap(...)), or add a family "
                "(CONTRIBUTING.md)",
            )
        for (start, count), view in zip(runs, views, strict=True):
            layout.add(view, range(start, start + count))
        return layout

    def _warn(self, media: MediaInputs, message: str) -> None:
        """Warn where the model's inputs are read; they are read, too, where regaze builds a prompt itself."""
        if media.images is None and message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, GuessWarning, stacklevel=3)

    def _contradiction(self, media: MediaInputs) -> str | None:
        """What speaks against one run for each image of the batch; None where nothing does."""
        ids, (source, entries) = media.get("input_ids"), _images(media)
        if self._refuted is not None or not isinstance(ids, Tensor) or ids.dim() != 2:
            return self._refuted
        if _dimensions(entries) == 5 and entries.shape[1] > 1:
            return f"{source} of shape {list(entries.shape)} has several tiles for an image"
        runs = sum(len(self.image_runs(row)) for row in ids.tolist())
        if media.images is not None and runs > media.images:
            self._refuted = f"{media.images} images have {runs} runs of image tokens in a prompt"
            return self._refuted
        counted = entries is not None and (source in _GRIDS or _dimensions(entries) >= 4)
        known = len(entries) if counted else media.images
        if known is None or runs == known:
            return None
        return f"the prompts have {runs} runs of image tokens, but {source} is of {known} images"

    def _next_size(self, media: MediaInputs) -> _Size | None:
        """The size of the next image; None where the inputs hold no images.

        Raises:
            InputError: they do not say its size, it is a video, or the model resamples images.
        """
        for name in _RESAMPLERS:
            if getattr(self.config, name, None) is not None:
                raise InputError(f"its configuration has `{name}`, so its image tokens may show no places")
        source, entries = _images(media)
        if entries is None:
            return None
        if source in _GRIDS:
            *frames, high, wide = media.next(source)
            if math.prod(frames) != 1:
                raise InputError(f"{source} has {frames[0]} frames for an image")
            return _Size(int(high), int(wide), source)
        if _dimensions(entries) < 4:
            raise InputError(f"{source} of shape {list(entries.shape)} does not say the shape of an image")
        (pixels,) = media.next_entries(source, 1)
        high, wide = pixels.shape[-2:]
        sizes = media.get("image_sizes")
        if isinstance(sizes, Tensor) and sizes.dim() == 2 and len(sizes) == len(entries):
            own = media.next("image_sizes")
            if sizes.amax(0).tolist() == [high, wide]:  # before padding; otherwise those of the files
                high, wide = own
        return _Size(int(high), int(wide), source, in_pixels=True)

    def _view(self, count: int, size: _Size | None) -> ViewTokens:
        """The tokens of one image. Raises InputError where their number contradicts its size."""
        if count == 1:  # which may stand for an image that is seen elsewhere
            return ViewTokens.unplaced(count)
        if size is None:
            side = math.isqrt(count)
            return ViewTokens.row_major(side, side) if side * side == count else ViewTokens.unplaced(count)
        grid = self._in_shape(count, size)
        if grid is None:
            unit = "pixels" if size.in_pixels else "patches"
            raise InputError(
                f"{count} image tokens are no grid in the shape of {size.high} x {size.wide} {unit}, the "
                f"size of an image by {size.source}"
            )
        return ViewTokens.row_major(*grid, box=None)  # cropped, padded or whole: measured where possible

    def _in_shape(self, count: int, size: _Size) -> tuple[int, int] | None:
        """The rows and columns of `count` square cells that fill an image; None where there are none."""
        rows = math.isqrt(count * size.high // size.wide)
        if not rows or count % rows or rows * size.wide != count // rows * size.high:
            return None
        patches = size.high
        if size.in_pixels:
            side = getattr(getattr(self.config, "vision_config", None), "patch_size", None)
            patches = size.high // side if isinstance(side, int) and side > 0 else rows
        return None if patches % rows else (rows, count // rows)


def _images(media: MediaInputs) -> tuple[str, Any]:
    """The argument that tells most of the images of a batch, and its entries; ("", None) without images."""
    found = ((name, media.get(name)) for name in (*_GRIDS, *PIXELS))
    return next(((name, entries) for name, entries in found if entries is not None), ("", None))


def _dimensions(entries: Any) -> int:
    """Dimensions of a tensor of pixels; of a list with a tensor [C, H, W] per image, 4; 0 for None."""
    return entries.dim() if isinstance(entries, Tensor) else 0 if entries is None else 4


class UnknownFamily(Family):
    """A vision-language model of an unknown family whose image tokens regaze cannot find."""

    name = "unknown vision-language"

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        raise UnsupportedModelError(
            f"regaze does not know where {self.config.model_type!r} puts its image tokens; "
            "pass the roles yourself with gaze.using(..., tokens=TokenMap.from_roles(...)), "
            "or add a family (CONTRIBUTING.md)"
        )
