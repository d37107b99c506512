"""Pictures that a questions file holds as base64 text, saved so that they have a path."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from pathlib import Path

from PIL import Image

from regaze.errors import InputError
from regaze.writing import make_folder, replace_file

#: Characters of one picture.
MAX_CHARACTERS = 32 * 2**20
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
_DATA_URL = re.compile(r"data:image/[a-z+.-]{1,20};base64,")


def save_embedded(text: str, folder: Path, source: str) -> Path:
    """Save a picture under the hash of its bytes; equal pictures share a file, a present file stays.

    Only the header is looked at here; pixels are decoded within limits when the picture is used.

    Args:
        text: Base64, with or without "data:image/...;base64," in front.
        source: Named in errors.

    Raises:
        InputError: The text is too long, not base64, or no JPEG, PNG or WebP picture.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{source}: a picture of more than {MAX_CHARACTERS} base64 characters")
    try:
        data = base64.b64decode(_DATA_URL.sub("", text[:100], count=1) + text[100:], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{source}: the picture is not base64 text: {error}") from error
    try:
        kind = Image.open(io.BytesIO(data), formats=list(_SUFFIXES)).format or ""
    except Exception as error:  # Pillow's readers fail in any way where a file is damaged
        raise InputError(f"{source}: the base64 text is no JPEG, PNG or WebP picture") from error
    path = folder / (hashlib.sha256(data).hexdigest()[:32] + _SUFFIXES[kind])
    if not path.exists():
        replace_file(make_folder(folder) / path.name, data)
    return path
