"""Blacking out pixels in the inputs of a model, whatever the layout of its processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regaze.errors import ShapeError

Mask = NDArray[np.bool_]


def black_out(processor: Any, features: Mapping[str, Any], masks: Sequence[Mask]) -> Tensor:
    """The pixel values, black where a mask is False; all others are bit-identical.

    Args:
        processor, features: as for `prompts.pixels.seen_images`.
        masks: [H, W] for each image, in the size that the model receives.
    """
    pixels: Tensor = features["pixel_values"]
    # The masks go through the processor, without its steps that change sizes, to find each pixel's place.
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
