"""Data sets of the Hugging Face hub as rows with their images on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.files import cache_folder
from regaze.writing import make_folder, replacing


@dataclass(frozen=True)
class HubRow:
    """A row of a data set.

    Attributes:
        values: The columns, without the image.
        image: File of the image, None if the row has none.
        source: Data set, split and index, for error messages.
    """

    values: Mapping[str, Any]
    image: Path | None
    source: str


def read_rows(repository: str | None, *, split: str, limit: int | None = None) -> Iterator[HubRow]:
    """The first `limit` rows of a data set (None: all), each image saved once as a PNG file in the cache.

    Raises:
        InputError: `datasets` is not installed, or the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{repository} is read by the datasets library: pip install 'regaze[eval]'"
        ) from error
    try:
        data = datasets.load_dataset(repository, split=split)
    except Exception as error:  # datasets raises a dozen unrelated classes
        raise InputError(f"{repository} ({split}) cannot be loaded from the hub: {error}") from error
    folder = cache_folder() / "hub" / str(repository).replace("/", "--") / split
    for index, values in enumerate(data):
        if index == limit:
            return
        image = values.pop("image", None)
        path = None if image is None else _save(image.convert("RGB"), folder)
        yield HubRow(values, path, f"{repository} {split}[{index}]")


def _save(image: Any, folder: Path) -> Path:
    """Save an image under the hash of its pixels, so that rows with the same image share one file.

    Intervals are clustered by image file, and prefixes are shared by it.
    """
    pixels = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:32]
    path = folder / f"{pixels}.png"
    if not path.exists():
        with replacing(make_folder(folder) / path.name) as partial:
            image.save(partial, format="png")
    return path
