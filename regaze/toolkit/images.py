"""Opening images: one place, one kind of error."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from regaze.errors import InputError

ImageLike = Image.Image | str | Path


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
