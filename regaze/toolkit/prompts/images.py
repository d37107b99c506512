"""Images: opening them, reading back what a model sees of them, masking and cropping them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regaze.errors import InputError, ShapeError, UnsupportedModelError

ImageLike = Image.Image | str | Path
#: Arguments of a forward that hold pixels; a model may be given the same images at two sizes.
PIXELS = ("pixel_values", "pixel_values_images", "image_pixel_values", "high_res_pixel_values")
#: Left, upper, right and lower edge in whole pixels; right and lower are the first ones outside.
PixelBox = tuple[int, int, int, int]
Mask = NDArray[np.bool_]


def open_image(image: ImageLike) -> Image.Image:
    """A PIL image in RGB, decoded.

    Raises:
        InputError: no such file, a file that is no readable image, or something else altogether.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, (str, Path)):
        raise InputError(f"an image is a PIL image or a path, got {type(image).__name__}")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"there is no image {str(image)!r}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{str(image)!r} is not a readable image: {error}") from None


# What a model sees --------------------------------------------------------------------------------------


def seen_images(processor: Any, features: Mapping[str, Any]) -> list[Image.Image]:
    """The images as the model receives them, read back from pixel values.

    Args:
        processor: the image processor that made them (its mean, deviation and patch layout are undone).
        features: "pixel_values" [N, 3, H, W], or flattened patches with "image_grid_thw" [N, 3].

    Raises:
        UnsupportedModelError: pixel values in another layout, for example several tiles per image.
    """
    return [_to_image(pixels) for pixels in seen_pixels(processor, features)]


def seen_pixels(processor: Any, features: Mapping[str, Any]) -> list[Tensor]:
    """As `seen_images`: per image a [3, H, W] fp32 tensor on the CPU, mostly in [0, 1]."""
    pixels = torch.as_tensor(features["pixel_values"]).detach().float().cpu()
    if pixels.dim() == 2 and features.get("image_grid_thw") is not None:
        images = _unpatchify(processor, pixels, torch.as_tensor(features["image_grid_thw"]).tolist())
    elif pixels.dim() == 5 and pixels.shape[1] == 1:
        images = list(pixels[:, 0])
    elif pixels.dim() == 4:
        images = list(pixels)
    else:
        raise UnsupportedModelError(
            f"{type(processor).__name__} makes pixel values of shape {list(pixels.shape)}; regaze reads "
            "one picture per image, [N, 3, H, W] or flattened patches with image_grid_thw"
        )
    if getattr(processor, "do_normalize", False):
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (processor.image_mean, processor.image_std))
        images = [image * std + mean for image in images]
    if not getattr(processor, "do_rescale", True):
        images = [image / 255 for image in images]
    return images


def black_out(processor: Any, features: Mapping[str, Any], masks: Sequence[Mask]) -> Tensor:
    """The pixel values, black where a mask is false; all others keep their very bits.

    Args:
        processor, features: as for `seen_images`.
        masks: [H, W] for each image, in the size that the model sees.
    """
    pixels: Tensor = features["pixel_values"]
    # The processor itself, without what changes sizes, says which numbers belong to which pixel.
    steps = [s for s in ("do_resize", "do_center_crop", "do_pad") if getattr(processor, s, None)]
    options = {"return_tensors": "pt", **dict.fromkeys(steps, False)}
    kept, black = (
        processor(images=[Image.fromarray(picture).convert("RGB") for picture in pictures], **options)
        for pictures in (masks, [np.zeros_like(mask) for mask in masks])
    )
    shape = kept["pixel_values"].shape
    if shape != pixels.shape:
        raise ShapeError(f"masks give pixel values {list(shape)}, but the images have {list(pixels.shape)}")
    black = black["pixel_values"]
    return torch.where((kept["pixel_values"] != black).to(pixels.device), pixels, black.to(pixels))


def _unpatchify(processor: Any, pixels: Tensor, grids: list[list[int]]) -> list[Tensor]:
    """Qwen-VL's layout: blocks of merged patches, in each patch channels x frames x pixels."""
    merge, frames, side = processor.merge_size, processor.temporal_patch_size, processor.patch_size
    images = []
    for part, (time, high, wide) in zip(pixels.split([t * h * w for t, h, w in grids]), grids, strict=True):
        if time != 1:
            raise UnsupportedModelError("regaze reads images back from pixel values, not videos")
        blocks = part.view(high // merge, wide // merge, merge, merge, -1, frames, side, side)[
            :, :, :, :, :, 0
        ]
        # rows: block, patch, pixel; columns likewise
        images.append(blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, high * side, wide * side))
    return images


def _to_image(pixels: Tensor) -> Image.Image:
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)


# Editing ------------------------------------------------------------------------------------------------


def top_share(values: NDArray[Any], share: float, where: Mask | None = None) -> Mask:
    """The `share` of the pixels with the highest values, ties with the last of them included.

    Args:
        values: [H, W].
        share: in (0, 1]; the threshold is the (1 - share) quantile, linearly interpolated.
        where: [H, W], the pixels that count; others are never kept.
    """
    counted = np.ones(values.shape, bool) if where is None else where
    threshold = np.quantile(values[counted], 1 - share)
    # Resampled constants differ in their last bits: they are ties.
    return (values >= threshold - 1e-12 * abs(threshold)) & counted


def mask_image(image: Image.Image, mask: Mask) -> Image.Image:
    """The image with the pixels outside `mask` [H, W] black. Raises ShapeError when the sizes differ."""
    if mask.shape != (image.height, image.width):
        raise ShapeError(
            f"the mask is {list(mask.shape)}, but the image has {image.height} rows of {image.width} pixels"
        )
    return Image.fromarray(np.where(mask[..., None], np.asarray(image.convert("RGB")), 0).astype(np.uint8))


def bounding_box(mask: Mask) -> PixelBox:
    """The smallest box that holds every kept pixel of `mask` [H, W]; InputError when there is none."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    if not len(rows):
        raise InputError("the mask keeps no pixel, so there is nothing to crop to")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def zoom(image: Image.Image, box: PixelBox, limit: float = 4.0) -> Image.Image:
    """The box of the image, enlarged until it covers the image's width and height, aspect kept.

    Args:
        box: what is cut out; its enlarged sides are rounded down to whole pixels.
        limit: no side grows beyond `limit` times the image's longer side; a thin box covers less then.
    """
    crop = image.crop(box)
    cover = max(image.width / crop.width, image.height / crop.height)
    scale = min(cover, limit * max(image.size) / max(crop.size))
    size = (max(1, int(crop.width * scale)), max(1, int(crop.height * scale)))
    return crop.resize(size, Image.Resampling.LANCZOS)
