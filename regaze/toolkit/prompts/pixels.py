"""How the pixels of images lie in the outputs of processors, and reading them back from there.

A family names its layout, `Family.pixels`: `Tiles` or `Patches`. Either gives back pieces, [3, H, W] each:
the whole image, a tile of it or a thumbnail. Which part of the image a piece shows is found in `sight`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from regaze.errors import InputError, ShapeError, UnsupportedModelError

#: Arguments of a forward that hold pixels; some models take the same images at two sizes.
PIXELS = ("pixel_values", "pixel_values_images", "image_pixel_values", "high_res_pixel_values")


class PixelLayout(Protocol):
    """How pixels lie in a processor's outputs.

    Attributes:
        name: the output that holds them.
    """

    @property
    def name(self) -> str: ...

    def split(self, features: Mapping[str, Any], processor: Any) -> list[Tensor]:
        """The pieces [3, H, W] of all images, in the processor's order and with its normalisation."""


@dataclass(frozen=True)
class Tiles:
    """Images, or tiles and thumbnails of them, as [..., 3, H, W]."""

    name: str = "pixel_values"

    def split(self, features: Mapping[str, Any], processor: Any) -> list[Tensor]:
        pixels = features[self.name]
        parts = [pixels] if isinstance(pixels, Tensor) else [torch.as_tensor(part) for part in pixels]
        return [piece for part in parts for piece in part.reshape(-1, *part.shape[-3:])]


@dataclass(frozen=True)
class Patches:
    """Patches of each piece, flattened: one after the other [patches, ...], or padded [pieces, patches, ...].

    Attributes:
        grid: the output that says how many (frames,) rows and columns of patches a piece has; "" for squares.
        merged: whether the patches that become one token are neighbours; otherwise they lie row by row.
        channels_last: whether a patch is [side, side, 3]; otherwise [3, frames, side, side].
    """

    name: str = "pixel_values"
    grid: str = "image_grid_thw"
    merged: bool = False
    channels_last: bool = False

    def split(self, features: Mapping[str, Any], processor: Any) -> list[Tensor]:
        patches, grids = self.patches(features), self.grids(features)
        if patches.dim() == 3:  # padded
            parts = [part[: rows * columns] for part, (rows, columns) in zip(patches, grids, strict=True)]
        else:
            parts = list(patches.split([rows * columns for rows, columns in grids]))
        merge = processor.merge_size if self.merged else 1
        return [self._joined(part, *grid, merge) for part, grid in zip(parts, grids, strict=True)]

    def patches(self, features: Mapping[str, Any]) -> Tensor:
        """[patches, values of a patch] or [pieces, patches, values of a patch]."""
        pixels: Tensor = features[self.name]
        return pixels if pixels.dim() == 3 else pixels.flatten(1)

    def grids(self, features: Mapping[str, Any]) -> list[tuple[int, int]]:
        """(rows, columns) of the patches of each piece."""
        if not self.grid:
            side = math.isqrt(features[self.name].shape[1])
            return [(side, side)] * len(features[self.name])
        grids = torch.as_tensor(features[self.grid]).tolist()
        if any(grid[0] != 1 for grid in grids if len(grid) == 3):
            raise UnsupportedModelError("regaze reads images back from pixel values, not videos")
        return [(grid[-2], grid[-1]) for grid in grids]

    def _joined(self, patches: Tensor, rows: int, columns: int, merge: int) -> Tensor:
        """[3, H, W] of patches [rows * columns, values]."""
        area = patches.shape[1] // 3  # frames x side x side; there are 1 or 2 frames, all of them alike
        side = math.isqrt(area) if math.isqrt(area) ** 2 == area else math.isqrt(area // 2)
        if self.channels_last:
            patches = patches.view(-1, side, side, 3).permute(0, 3, 1, 2)
        else:
            patches = patches.view(-1, 3, area // side**2, side, side)[:, :, 0]
        blocks = patches.reshape(rows // merge, columns // merge, merge, merge, 3, side, side)
        # A row of pixels is that of its block, patch and pixel; a column likewise.
        return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)


def padded_sizes(features: Mapping[str, Any], name: str = "pixel_values") -> list[tuple[int, int]] | None:
    """(height, width) of each piece [3, H, W], where a batch pads them on the right and below to one size.

    None where no piece is padded, or the outputs do not say so; (0, 0) of a piece that is padding itself.
    """
    pixels, sizes = features.get(name), features.get("image_sizes")
    if not isinstance(pixels, Tensor):
        return None
    canvas = (pixels.shape[-2], pixels.shape[-1])
    shown = features.get("pixel_attention_mask")
    if pixels.dim() == 5 and isinstance(shown, Tensor) and shown.shape == (*pixels.shape[:2], *canvas):
        shown = shown.bool().flatten(0, 1)
        found = torch.stack([shown.any(2).sum(1), shown.any(1).sum(1)], 1).tolist()
    elif pixels.dim() == 4 and sizes is not None and len(sizes) == len(pixels):
        found = torch.as_tensor(sizes).tolist()
        if tuple(max(sides) for sides in zip(*found, strict=True)) != canvas:
            return None  # the sizes of something else
    else:
        return None
    return None if all(tuple(size) == canvas for size in found) else [(size[0], size[1]) for size in found]


def guess_layout(features: Mapping[str, Any]) -> PixelLayout:
    """The layout of a processor of which only the outputs are known."""
    return Patches(merged=True) if features.get("image_grid_thw") is not None else Tiles()


def read_pieces(layout: PixelLayout, processor: Any, features: Mapping[str, Any]) -> list[Tensor]:
    """The pieces of all images, [3, H, W] in fp32 on the CPU, mostly in [0, 1].

    Args:
        layout: of the family.
        processor: the image processor that made them; its normalisation is undone.
        features: its outputs.

    Raises:
        InputError: the features have no pixels.
    """
    if features.get(layout.name) is None:
        raise InputError(f"there are no pixels: the processor's outputs have no {layout.name!r}")
    pieces = layout.split(features, processor)
    return [_denormalised(processor, piece.detach().float().cpu()) for piece in pieces]


def _denormalised(processor: Any, piece: Tensor) -> Tensor:
    if getattr(processor, "do_normalize", False):
        mean, std = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
        if mean is None or std is None:  # each image has been normalised by its own
            return (piece - piece.min()) / (piece.max() - piece.min()).clamp_min(1e-6)
        piece = piece * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    rescaled = getattr(processor, "do_rescale", True) is not False
    factor = getattr(processor, "rescale_factor", None) or 1 / 255
    return piece / (255 * factor if rescaled else 255)  # Chameleon's goes up to 2


def seen_images(layout: PixelLayout, processor: Any, features: Mapping[str, Any]) -> list[Image.Image]:
    """The images of a batch as the model receives them, where it receives each in one piece.

    Raises:
        UnsupportedModelError: it receives several tiles per image.
    """
    shape = list(features[layout.name].shape)
    if isinstance(layout, Tiles) and len(shape) != 4 and not (len(shape) == 5 and shape[1] == 1):
        raise UnsupportedModelError(
            f"{type(processor).__name__} makes pixel values of shape {shape}; one picture per image is "
            "needed, [N, 3, H, W] or flattened patches with image_grid_thw"
        )
    pieces = read_pieces(layout, processor, features)
    if isinstance(layout, Tiles) and (sizes := padded_sizes(features, layout.name)) is not None:
        pieces = [piece[:, :height, :width] for piece, (height, width) in zip(pieces, sizes, strict=True)]
    return [to_image(piece) for piece in pieces]


def to_pixels(processor: Any, images: Sequence[Image.Image], features: Mapping[str, Any]) -> Tensor:
    """The inverse of `seen_images`: pictures of the sizes that the model receives, as pixel values.

    Args:
        processor: the image processor; its steps that change sizes are left out.
        features: the outputs that the pictures were read from.

    Raises:
        ShapeError: they give pixel values of another shape than those of the features.
    """
    pixels = features["pixel_values"]
    steps = [step for step in ("do_resize", "do_center_crop", "do_pad") if getattr(processor, step, None)]
    options = {"return_tensors": "pt", **dict.fromkeys(steps, False)}
    pictures = [image.convert("RGB") for image in images]
    if padded_sizes(features) is not None:
        padded = pixels.clone()
        for place, picture in zip(padded.flatten(0, -4), pictures, strict=True):
            place[:, : picture.height, : picture.width] = processor(images=[picture], **options)[
                "pixel_values"
            ].reshape(3, picture.height, picture.width)
        return padded
    made = processor(images=pictures, **options)["pixel_values"]
    if made.shape != pixels.shape:
        raise ShapeError(
            f"the pictures give pixel values {list(made.shape)}, but those of the prompts are "
            f"{list(pixels.shape)}"
        )
    return made.to(pixels)


def to_image(pixels: Tensor) -> Image.Image:
    """[3, H, W] in [0, 1] as a picture."""
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array)
