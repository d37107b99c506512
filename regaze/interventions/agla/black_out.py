"""Blacking out pixels in the inputs of a model, whatever the layout of its processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regaze.toolkit.prompts.pixels import to_pixels

Mask = NDArray[np.bool_]


def black_out(processor: Any, features: Mapping[str, Any], masks: Sequence[Mask]) -> Tensor:
    """The pixel values, black where a mask is False; all others are bit-identical.

    Args:
        processor, features: as for `prompts.pixels.seen_images`.
        masks: [H, W] for each image, in the size that the model receives.
    """
    # The masks go through the processor, to find each pixel's place.
    kept, black = (
        to_pixels(processor, [Image.fromarray(picture) for picture in pictures], features)
        for pictures in (masks, [np.zeros_like(mask) for mask in masks])
    )
    return torch.where(kept != black, features["pixel_values"], black)
