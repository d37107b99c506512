"""Downloads of benchmark files into a cache folder, checked against known hashes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regaze.errors import InputError
from regaze.eval.files import cache_folder
from regaze.reading import StrPath, hash_file
from regaze.writing import make_folder, replacing

TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Attributes:
        url: Address, at a fixed revision where there is one.
        path: Place in the benchmark's folder.
        sha256: Hash of the content; None if it is unknown, so that any content is accepted.
    """

    url: str
    path: str
    sha256: str | None


def github_file(
    repository: str, commit: str, path: str, sha256: str | None, local_path: str | None = None
) -> RemoteFile:
    """A file of a GitHub repository at a commit."""
    url = f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"
    return RemoteFile(url, local_path or path.rsplit("/", 1)[-1], sha256)


def hub_file(repository: str, path: str) -> RemoteFile:
    """A file of a data set on the Hugging Face hub, whose hash is not pinned."""
    url = f"https://huggingface.co/datasets/{repository}/resolve/main/{path}"
    return RemoteFile(url, path.rsplit("/", 1)[-1], None)


def benchmark_folder(name: str) -> Path:
    """Folder of the files of benchmark `name`."""
    return cache_folder() / "benchmarks" / name


def download_files(
    files: Sequence[RemoteFile], folder: StrPath, report: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Download the files that `folder` lacks, and check the hashes of all. A present file is never replaced.

    Args:
        report: Called with one line per file: its path and hash, and whether the hash was pinned.

    Raises:
        InputError: A file cannot be downloaded or written, or its hash is not the pinned one. Nothing of a
            wrong or broken download is left in `folder`.
    """
    paths = []
    for file in files:
        path = Path(folder) / file.path
        if not path.is_file():
            _retrieve(file, path)
        found = hash_file(path)
        if file.sha256 not in (None, found):
            raise InputError(f"{path} has sha256 {found}, expected {file.sha256}: not the published file")
        pinned = "as pinned" if file.sha256 else "no hash is published to check it by"
        report(f"{path} sha256 {found} ({pinned})")
        paths.append(path)
    return paths


def _retrieve(file: RemoteFile, path: Path) -> None:
    """Download one file, which is at `path` once it is whole and its hash is right."""
    import pooch

    downloader = pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS, progressbar=sys.stderr.isatty())
    make_folder(path.parent)
    with replacing(path) as partial:
        try:
            downloader(file.url, str(partial), None)
        except OSError as error:  # no network, an HTTP error, a full disk
            raise InputError(
                f"{file.url} cannot be downloaded: {error}. Get it on another machine and save it as {path}"
            ) from error
        found = hash_file(partial)
        if file.sha256 not in (None, found):
            raise InputError(f"{file.url} is not the published file: it has sha256 {found}")
