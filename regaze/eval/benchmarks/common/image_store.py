"""Images that are made here (rows of a hub's table, edited copies), as files in the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from regaze.writing import make_folder, replacing

if TYPE_CHECKING:
    from PIL.Image import Image


def store_image(image: Image, folder: Path) -> Path:
    """Save an image as PNG under the hash of its pixels, so that equal images share one file.

    Intervals are clustered by image file, and prefixes are shared by it.
    """
    pixels = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:32]
    path = folder / f"{pixels}.png"
    if not path.exists():
        with replacing(make_folder(folder) / path.name) as partial:
            image.save(partial, format="png")
    return path
