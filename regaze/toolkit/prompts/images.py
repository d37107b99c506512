"""`open_image`: a picture from wherever it is, as an image viewer shows it, in 8-bit RGB."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from typing_extensions import TypeIs

from regaze.errors import InputError
from regaze.reading import StrPath, limit_from_environment, open_regular
from regaze.toolkit.prompts.arrays import from_array, is_array
from regaze.toolkit.prompts.remote import fetch, is_url, shown

#: A Pillow image, a path or a URL, the bytes of a file, an array [H, W, 3] or a tensor [3, H, W].
ImageLike = Image.Image | StrPath | bytes | np.ndarray | Tensor

#: Most pixels of a picture; REGAZE_MAX_PIXELS in the environment overrides it.
MAX_PIXELS = 64_000_000
#: Most times that one side of a picture may be longer than the other; REGAZE_MAX_ASPECT overrides it. A
#: processor that resizes the short side would need gigabytes for a file of a few bytes.
MAX_ASPECT = 200
#: Formats of Pillow that hold programs, which other software would run.
_PROGRAMS = frozenset({"EPS", "WMF"})
#: The least brightest value, of 255, of a picture whose values are of more than 8 bits.
_DARK = 16
#: Keys of `Image.info`: the file, and whether an image is what a model receives (`Gaze.seen`).
_FILE, SEEN = "regaze_file", "regaze_seen"


def open_image(image: ImageLike, allow_urls: bool = False) -> Image.Image:
    """A decoded picture in RGB, turned as its EXIF orientation says.

    Grey values of more than 8 bits are scaled to 8 bits. Of a file with several frames it is the first.

    Args:
        image: a Pillow image, a path, the bytes of a file, an array or a tensor (`from_array`).
        allow_urls: a text that begins with http:// or https:// is fetched (`remote.fetch`).

    Raises:
        InputError: no such file, a file that is not a whole picture, too many pixels, a shape that no model
            reads, grey values of an unknown range, a URL that is not allowed, or another type.
    """
    if not is_image(image):
        shape = getattr(image, "shape", None)
        got = type(image).__name__ if shape is None else f"one of shape {list(shape)}"
        raise InputError(
            f"an image is a PIL image, a path, the bytes of a file, or an array [H, W, 3] of uint8, got {got}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of many pixels (`_check_size`) and damaged metadata
        if isinstance(image, Image.Image):
            return _decode(image, str(image.info.get(_FILE) or getattr(image, "filename", "")))
        if isinstance(image, np.ndarray | Tensor):
            return _decode(from_array(image), "")
        if isinstance(image, bytes | bytearray):
            return _decode(_identify(io.BytesIO(image), "the image"), "")
        if is_url(image):
            return _from_url(str(image), allow_urls)
        path = os.fspath(image)
        with _open_file(path) as file:
            return _decode(_identify(file, path), path)


def _from_url(url: str, allowed: bool) -> Image.Image:
    if not allowed:
        raise InputError(f"{shown(url)} is a URL: allow_urls=True (--allow-urls) lets it be fetched")
    return _decode(_identify(io.BytesIO(fetch(url)), shown(url)), shown(url))


def is_image(value: Any) -> TypeIs[ImageLike]:
    """Whether a value is what `open_image` takes, rather than a list of images."""
    return isinstance(value, Image.Image | str | os.PathLike | bytes | bytearray) or is_array(value)


def describe_image(image: Image.Image) -> str:
    """The file and the size of a picture, for messages."""
    return f"{_name(image.info.get(_FILE))} ({image.width} x {image.height} pixels)"


def _name(file: str | None) -> str:
    return repr(file) if file else "the image"


def _open_file(path: str) -> IO[bytes]:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise InputError(f"there is no image {path!r}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path!r} is not a readable image: {reason}") from None


def _identify(file: IO[bytes], name: str) -> Image.Image:
    """The picture in a file, not yet decoded."""
    Image.init()
    try:
        return Image.open(file, formats=[each for each in Image.ID if each not in _PROGRAMS])
    except UnidentifiedImageError:
        raise InputError(f"{name!r} is not a readable image: it has no format that Pillow knows") from None
    except Exception as error:  # Pillow's readers fail in any way where a file is damaged
        raise InputError(f"{name!r} is not a readable image: {_first_line(error)}") from None


def _decode(image: Image.Image, file: str) -> Image.Image:
    _check_size(image.size, _name(file))
    try:
        image.load()
        reduced = _REDUCERS[image.mode](image) if image.mode in _REDUCERS else image
        decoded = _turn(image, reduced).convert("RGB")
    except Exception as error:  # as in `_identify`
        raise InputError(f"{_name(file)} is not a readable image: {_first_line(error)}") from None
    # Without the orientation, so that it is turned once.
    decoded.info = {_FILE: file, SEEN: image.info.get(SEEN) is True}
    return decoded


def _check_size(size: tuple[int, int], name: str) -> None:
    """Refuse a picture that would fill the memory, before a pixel is decoded."""
    width, height = size
    pixels = limit_from_environment("REGAZE_MAX_PIXELS", MAX_PIXELS)
    aspect = limit_from_environment("REGAZE_MAX_ASPECT", MAX_ASPECT)
    if not width or not height:
        raise InputError(f"{name} is {width} x {height}: it has no pixels")
    if width * height > pixels:
        raise InputError(
            f"{name} has {width} x {height} pixels, but at most {pixels:,.0f} are read; make it smaller, or "
            "set REGAZE_MAX_PIXELS"
        )
    if max(size) > aspect * min(size):
        raise InputError(
            f"{name} has {width} x {height} pixels, but a side may be at most {aspect:g} times the other; "
            "crop it, or set REGAZE_MAX_ASPECT"
        )


def _turn(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """`pixels` of `image`, turned by its orientation; one whose EXIF data are damaged is left as it is."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as in `_identify`
        return pixels
    if orientation not in range(2, 9):
        return pixels
    turned = pixels.copy()
    turned.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(turned, in_place=True)
    return turned


# Other modes than 8-bit ones ----------------------------------------------------------------------------


def _from_16_bit(image: Image.Image) -> Image.Image:
    bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # BitsPerSample of TIFF, which may be 12
    return _scaled(np.asarray(image), 2**bits - 1)


def _from_32_bit(image: Image.Image) -> Image.Image:
    """Whole numbers of 8 or 16 bits."""
    values = np.asarray(image)
    sixteen = image.format in ("PNG", "PPM") or values.max() > 255
    return _scaled(values, 65_535 if sixteen else 255)


def _from_float(image: Image.Image) -> Image.Image:
    """Floats up to 1 or to 255; the brightest pixel tells which."""
    values = np.asarray(image)
    return _scaled(values, 1 if values.max() <= 1 else 255)


def _scaled(values: np.ndarray, white: int) -> Image.Image:
    """Grey values in 8 bits; raises ValueError where it is not clear which value is white.

    In a picture that would be nearly black, white may be less than its type allows: 4,095 in 16 bits, 1 in 8.
    """
    low, high = float(values.min()), float(values.max())
    fits = low >= 0 and high <= white
    if not fits or (white > 1 and 0 < high * 255 < _DARK * white):
        raise ValueError(
            f"its grey values go from {low:g} to {high:g}, and it is not clear which is white: save it with "
            "8 bits per pixel"
        )
    scaled = values.astype(np.float32) * np.float32(255 / white)
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


_REDUCERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), _from_16_bit),
    "I": _from_32_bit,
    "F": _from_float,
    "La": lambda image: image.convert("LA"),
    "RGBa": lambda image: image.convert("RGBA"),
}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
