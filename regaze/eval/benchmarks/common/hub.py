"""Data sets of the Hugging Face hub: rows with their images on disk, and files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.image_store import store_image
from regaze.eval.files import cache_folder
from regaze.writing import make_folder, replace_file


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


def read_rows(
    repository: str | None, *, split: str, limit: int | None = None, images: bool = True
) -> Iterator[HubRow]:
    """The first `limit` rows of a data set (None: all), each image saved once as a PNG file in the cache.

    Args:
        images: False leaves the images where they are; rows have none.

    Raises:
        InputError: `datasets` is not installed, or the data set cannot be loaded.
    """
    folder = cache_folder() / "hub" / str(repository).replace("/", "--") / split
    data = _load(str(repository), "from the hub", split=split)
    if not images:  # they would be decoded for every row
        data = data.remove_columns("image")
    for index, values in enumerate(data):
        if index == limit:
            return
        yield _row(dict(values), folder, f"{repository} {split}[{index}]")


def read_parquet(path: Path) -> Iterator[HubRow]:
    """The rows of a downloaded file of a data set; images go into the cache, as in `read_rows`.

    Raises:
        InputError: `datasets` is not installed, or the file cannot be read.
    """
    folder = cache_folder() / "hub" / path.stem
    data = _load(str(path), "as parquet", "parquet", data_files=str(path), split="train")
    for index, values in enumerate(data):
        yield _row(dict(values), folder, f"{path}[{index}]")


def fetch_files(
    repository: str | None,
    patterns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    revision: str | None = None,
) -> Path:
    """Folder with files of a data set under their names there; what the hub's cache lacks is downloaded.

    Offline (HF_HUB_OFFLINE) it is what the cache has.

    Args:
        patterns: Names of files; * stands for any part of a name.
        optional: The same, of files that not every revision has.
        revision: Branch, tag or commit; main by default.

    Raises:
        InputError: The data set cannot be fetched, or has no file of one of `patterns`.
    """
    import huggingface_hub

    name = f"{repository}" if revision is None else f"{repository} at {revision}"
    advice = "get the benchmark's files yourself and say where they are: --data FOLDER"
    try:
        fetched = huggingface_hub.snapshot_download(
            str(repository), repo_type="dataset", revision=revision, allow_patterns=[*patterns, *optional]
        )
    except Exception as error:  # of the client, of HTTP, of the disk
        raise InputError(f"{name} cannot be fetched from the hub: {error}; {advice}") from error
    for pattern in patterns:
        if next(Path(fetched).glob(pattern), None) is None:
            raise InputError(f"{name} on the hub (offline, in {fetched}) has no {pattern}; {advice}")
    return Path(fetched)


def _load(name: str, how: str, *source: str, **options: Any) -> Any:
    """`datasets.load_dataset` of `source`, or of `name`."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{name} is read by the datasets library: pip install 'regaze[eval]'") from error
    try:
        return datasets.load_dataset(*(source or (name,)), **options)
    except Exception as error:  # datasets raises a dozen unrelated classes
        raise InputError(f"{name} ({options['split']}) cannot be loaded {how}: {error}") from error


def _row(values: dict[str, Any], folder: Path, source: str) -> HubRow:
    """A row with its image on disk; the image comes decoded, or as the bytes of its file."""
    image = values.pop("image", None)
    if isinstance(image, dict):
        image = image.get("bytes")
    if isinstance(image, bytes):
        return HubRow(values, save_bytes(image, folder), source)
    path = None if image is None else store_image(image.convert("RGB"), folder)
    return HubRow(values, path, source)


def save_bytes(picture: bytes, folder: Path) -> Path:
    """The file of a picture in `folder`, under the hash of its bytes; whatever opens it looks inside."""
    path = folder / f"{hashlib.sha256(picture).hexdigest()[:32]}.jpg"
    if not path.exists():
        replace_file(make_folder(folder) / path.name, picture)
    return path
