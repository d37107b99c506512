"""Reading back from pixel values what a model receives of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from regaze.errors import UnsupportedModelError

#: Arguments of a forward that hold pixels; some models take the same images at two sizes.
PIXELS = ("pixel_values", "pixel_values_images", "image_pixel_values", "high_res_pixel_values")


def seen_images(processor: Any, features: Mapping[str, Any]) -> list[Image.Image]:
    """The images as the model receives them, read back from pixel values.

    Args:
        processor: the image processor that made them; its normalisation and patch layout are undone.
        features: "pixel_values" [N, 3, H, W], or flattened patches with "image_grid_thw" [N, 3].

    Raises:
        UnsupportedModelError: pixel values in another layout, for example several tiles per image.
    """
    return [_to_image(pixels) for pixels in seen_pixels(processor, features)]


def seen_pixels(processor: Any, features: Mapping[str, Any]) -> list[Tensor]:
    """As `seen_images`, but tensors [3, H, W] in fp32 on the CPU, mostly in [0, 1]."""
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


def _unpatchify(processor: Any, pixels: Tensor, grids: list[list[int]]) -> list[Tensor]:
    """Images from Qwen-VL's layout: blocks of merged patches, each patch channels x frames x pixels."""
    merge, frames, side = processor.merge_size, processor.temporal_patch_size, processor.patch_size
    images = []
    for part, (time, high, wide) in zip(pixels.split([t * h * w for t, h, w in grids]), grids, strict=True):
        if time != 1:
            raise UnsupportedModelError("regaze reads images back from pixel values, not videos")
        blocks = part.view(high // merge, wide // merge, merge, merge, -1, frames, side, side)
        blocks = blocks[:, :, :, :, :, 0]  # an image is repeated in all frames
        # A row of pixels is that of its block, patch and pixel; a column likewise.
        images.append(blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, high * side, wide * side))
    return images


def _to_image(pixels: Tensor) -> Image.Image:
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)
