"""Data sets of the Hugging Face hub as rows with their images on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.files import cache_folder


@dataclass(frozen=True)
class Row:
    """A row: its values without the image, the image's file (None where it has none), where it came from."""

    values: Mapping[str, Any]
    image: Path | None
    source: str


def rows(
    repository: str | None,
    *,
    split: str,
    config: str | None = None,
    limit: int | None = None,
    image: str = "image",
) -> Iterator[Row]:
    """The rows of a data set, each picture saved once as a PNG file in the cache.

    Args:
        image: the column that holds the image.
        limit: only the first rows.

    Raises:
        InputError: `datasets` is not installed, or the data set cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{repository} is read by the datasets library: pip install 'regaze[eval]'"
        ) from error
    try:
        data = datasets.load_dataset(repository, config, split=split)
    except Exception as error:  # datasets raises a dozen unrelated classes
        raise InputError(f"{repository} ({split}) cannot be had from the hub: {error}") from error
    folder = cache_folder() / "hub" / str(repository).replace("/", "--") / (config or "default") / split
    for number, values in enumerate(data):
        if limit is not None and number == limit:
            return
        picture = values.pop(image, None)
        path = None if picture is None else _saved(picture.convert("RGB"), folder)
        yield Row(values, path, f"{repository} {split}[{number}]")


def _saved(picture: Any, folder: Path) -> Path:
    """The picture's file, named by its pixels: rows that show the same picture share it.

    That they do is what intervals are clustered by and prefixes shared by.
    """
    pixels = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()[:32]
    path = folder / f"{pixels}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        picture.save(partial, format="png")
        partial.replace(path)
    return path
