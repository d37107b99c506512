"""Pictures from arrays and tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regaze.errors import InputError

_CHANNELS = (1, 3, 4)


def is_array(value: Any) -> bool:
    """Whether a value is an array or a tensor of one picture, rather than of several."""
    return isinstance(value, np.ndarray | Tensor) and value.ndim in (2, 3)


def from_array(values: np.ndarray | Tensor) -> Image.Image:
    """A picture of values [H, W, C] or [C, H, W], or [H, W] in grey: uint8, or floats from 0 to 1.

    C is 1, 3 (RGB) or 4 (RGBA). Where both the first and the last side could be C, it is the last one of an
    array and the first one of a tensor, as their libraries have it.

    Raises:
        InputError: another shape, dtype or range.
    """
    is_tensor = isinstance(values, Tensor)
    numbers = _numbers(values)
    first, last = numbers.shape[0] in _CHANNELS, numbers.shape[-1] in _CHANNELS
    if numbers.ndim == 3 and not (first or last):
        raise InputError(
            f"an image is [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels; got {list(values.shape)}"
        )
    if numbers.ndim == 3 and first and (is_tensor or not last):
        numbers = numbers.transpose(1, 2, 0)
    if numbers.ndim == 3 and numbers.shape[-1] == 1:
        numbers = numbers[..., 0]
    if 0 in numbers.shape:
        raise InputError(f"an image has pixels, got {list(values.shape)}")
    return Image.fromarray(np.ascontiguousarray(_bytes(numbers)))


def _numbers(values: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    values = values.detach().cpu()
    return (values if values.dtype == torch.uint8 else values.float()).numpy()


def _bytes(numbers: np.ndarray) -> np.ndarray:
    if numbers.dtype == np.uint8:
        return numbers
    low, high = float(numbers.min()), float(numbers.max())
    if not np.issubdtype(numbers.dtype, np.floating) or not (low >= 0 and high <= 1):
        raise InputError(
            f"values of an image are uint8, or floats from 0 to 1; got {numbers.dtype}, {low:g} to {high:g}"
        )
    return (numbers.astype(np.float32) * np.float32(255)).round().astype(np.uint8)
