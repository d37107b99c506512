"""Ids of images and questions, however files spell them."""

from __future__ import annotations

import re

_ENDING = r"\.(?:jpe?g|png|webp|gif|bmp|tiff?)"


def image_stem(name: str, prefix: str) -> str:
    """What tells images apart, however a file spells their names.

    Folders, the suffix and what an address has behind it, the data set's prefix (a pattern) and leading zeros
    go: 42 and val2014/COCO_val2014_000000000042.jpg?raw=1 name the same photograph.
    """
    path = re.sub(rf"({_ENDING})[?#].*$", r"\1", name.strip(), flags=re.IGNORECASE)  # of an address
    stem = re.sub(rf"{_ENDING}$", "", re.split(r"[/\\]", path)[-1], flags=re.IGNORECASE)
    return plain_id(re.sub(rf"^(?:{prefix})(?=\d+$)", "", stem))


def plain_id(text: str) -> str:
    """An id without what spreadsheets do to it: leading zeros, ".0" after whole numbers."""
    number = re.fullmatch(r"0*(\d+)(?:\.0+)?", text.strip())
    return number[1] if number else text.strip()
