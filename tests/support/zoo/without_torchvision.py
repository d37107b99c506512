"""What some processors take from torchvision, so that they can be built where it is not installed.

Video processors, and the image processors of a few families, exist for torchvision alone. The real classes
are used, a few functions of torchvision replaced by torch's own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None

_PATHS = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)


class NoVideos:
    """Takes the place of a video processor; has the attributes that the processor class asks it for."""

    model_input_names: tuple[str, ...] = ()

    def __init__(self, **attributes: Any):
        self.__dict__.update(attributes)


def images_only(processor_class: Any, *, video: dict[str, Any], **parts: Any) -> Any:
    """A processor of images, text and videos, without videos: it refuses to be made without torchvision.

    Args:
        video: attributes that it asks its video processor for.
        parts: its other arguments.
    """
    with patch.object(processor_class, "check_argument_for_proper_class"):
        return processor_class(video_processor=NoVideos(**video), **parts)


class TorchImages(TorchvisionBackend):
    """The functions of the torchvision backend, in torch; a base of image processors that know no other."""

    def process_image(self, image: Image.Image, *args: Any, **options: Any) -> Tensor:
        """[3, H, W]; transformers 5.17 asks torchvision to read Pillow's images."""
        return super().process_image(np.array(image.convert("RGB")), *args, **options)

    def convert_to_rgb(self, image: Tensor, *_: Any, **__: Any) -> Tensor:
        return image  # it is

    def resize(
        self, image: Tensor, size: Any, resample: Any = None, antialias: bool = True, **_: Any
    ) -> Tensor:
        """[..., C, H, W] to `size`, bilinear, as torchvision does it."""
        shape = (size.height, size.width)
        lead = image.shape[:-3]
        pixels = image.float().reshape(-1, *image.shape[-3:])
        resized = F.interpolate(pixels, shape, mode="bilinear", antialias=antialias)
        resized = resized if image.is_floating_point() else resized.round().clamp(0, 255)
        return resized.to(image.dtype).reshape(*lead, *resized.shape[1:])

    def pad(self, images: Any, pad_size: Any = None, **_: Any) -> Any:
        """[N, C, H, W] to `pad_size`, or images of a list to a common size; zeros below and on the right."""
        if isinstance(images, list):
            height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
            return [F.pad(i, (0, width - i.shape[-1], 0, height - i.shape[-2])) for i in images]
        height, width = images.shape[-2:]
        return F.pad(images, (0, pad_size.width - width, 0, pad_size.height - height))

    def normalize(self, image: Tensor, mean: Any, std: Any, **_: Any) -> Tensor:
        mean, std = (image.new_tensor(list(values)).reshape(-1, 1, 1) for values in (mean, std))
        return (image - mean) / std


def _pad(images: Tensor, padding: list[int], fill: Any = 0) -> Tensor:
    """Zeros around [..., H, W], by (left, top, right, bottom)."""
    left, top, right, bottom = padding
    assert not any(fill if isinstance(fill, (list, tuple)) else [fill])
    return F.pad(images, (left, right, top, bottom))


def from_module(module: str, name: str) -> Any:
    """A class of a module of transformers that imports torchvision, there or not."""
    if HAS_TORCHVISION:
        return getattr(importlib.import_module(module), name)
    stand_ins = {path: ModuleType(path) for path in _PATHS}
    stand_ins[_PATHS[-1]].pad = _pad  # type: ignore[attr-defined]
    stand_ins[_PATHS[-1]].InterpolationMode = object  # type: ignore[attr-defined]  # in annotations alone
    stand_ins[_PATHS[-2]].functional = stand_ins[_PATHS[-1]]  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    try:
        return getattr(importlib.import_module(module), name)
    finally:
        for path in _PATHS:
            del sys.modules[path]


def image_processor(module: str, name: str, **settings: Any) -> Any:
    """An image processor that exists for torchvision alone."""
    real = from_module(module, name)
    return (real if HAS_TORCHVISION else type(name, (real, TorchImages), {}))(**settings)


def video_processor(module: str, name: str, **settings: Any) -> Any:
    """A video processor; they all exist for torchvision alone."""
    real = from_module(module, name)
    own = {"convert_to_rgb": TorchImages.convert_to_rgb}
    return (real if HAS_TORCHVISION else type(name, (real, TorchImages), own))(**settings)
