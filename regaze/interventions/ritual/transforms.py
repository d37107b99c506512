"""The six random transforms of an image that RITUAL draws from; each keeps its size.

The draws are those of torchvision's transforms in the release (`sangminwoo/RITUAL`); pixels are interpolated
by Pillow, so that those of rotations, crops and colours differ from torchvision's a little.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

Random = np.random.Generator


def drawn(image: Image.Image, transform: str, seed: int) -> Image.Image:
    """The image under a transform of `TRANSFORMS`, or under a "random" one.

    The draw follows from the seed and the image alone, so that no answer depends on the batch.
    """
    image = image.convert("RGB")
    rng = np.random.default_rng([seed, zlib.crc32(image.tobytes())])
    name = list(TRANSFORMS)[rng.integers(len(TRANSFORMS))] if transform == "random" else transform
    return TRANSFORMS[name](image, rng)


def horizontal_flip(image: Image.Image, rng: Random) -> Image.Image:
    """Left and right exchanged."""
    return ImageOps.mirror(image)


def vertical_flip(image: Image.Image, rng: Random) -> Image.Image:
    """Top and bottom exchanged."""
    return ImageOps.flip(image)


def rotation(image: Image.Image, rng: Random) -> Image.Image:
    """Turned by any angle about its centre; what is turned in from outside is black."""
    return image.rotate(rng.uniform(-180.0, 180.0), resample=Image.Resampling.NEAREST)


def colour(image: Image.Image, rng: Random) -> Image.Image:
    """Brightness, contrast and saturation times 0 to 2, and any hue, one after another in random order."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors, shift = rng.uniform(0.0, 2.0, 3), rng.uniform(-0.5, 0.5)
    for number in rng.permutation(4):
        image = (
            _shifted_hue(image, shift)
            if number == len(enhancers)
            else enhancers[number](image).enhance(float(factors[number]))
        )
    return image


def blur(image: Image.Image, rng: Random) -> Image.Image:
    """A Gaussian of 13 x 13 pixels, with a deviation of 1.5 to 2."""
    sigma, pixels = rng.uniform(1.5, 2.0), np.asarray(image, dtype=np.float32)
    blurred = ndimage.gaussian_filter(pixels, sigma, radius=6, mode="mirror", axes=(0, 1))
    return Image.fromarray(blurred.round().clip(0, 255).astype(np.uint8))


def crop(image: Image.Image, rng: Random) -> Image.Image:
    """A part of 8 % to all of the area, with an aspect from 3:4 to 4:3, in the size of the image."""
    return image.resize(image.size, Image.Resampling.BILINEAR, box=_box(*image.size, rng))


def _box(width: int, height: int, rng: Random) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part; after ten draws that do not fit, the largest central one."""
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
            return left, top, left + wide, top + high
    wide, high = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _shifted_hue(image: Image.Image, shift: float) -> Image.Image:
    """`shift` is a share of the circle of colours."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue).astype(np.int16) + round(shift * 255)
    return Image.merge("HSV", (Image.fromarray((turned % 256).astype(np.uint8)), saturation, value)).convert(
        "RGB"
    )


#: By name; RITUAL draws one of them for each image.
TRANSFORMS: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "horizontal_flip": horizontal_flip,
    "vertical_flip": vertical_flip,
    "rotation": rotation,
    "colour": colour,
    "blur": blur,
    "crop": crop,
}
