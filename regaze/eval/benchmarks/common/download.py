"""Benchmark files from their public homes into a cache, checked against a pinned hash."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regaze.errors import InputError
from regaze.eval.files import cache_folder

TIMEOUT = 60.0


@dataclass(frozen=True)
class Remote:
    """A published file.

    Attributes:
        url: where it is published, at a fixed revision where there is one.
        path: where it goes in the benchmark's folder of the cache.
        sha256: hash of its content; None where none is known, so that whatever comes is taken.
    """

    url: str
    path: str
    sha256: str | None


def github(repository: str, commit: str, path: str, sha256: str | None, to: str | None = None) -> Remote:
    """A file of a GitHub repository at a commit."""
    url = f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"
    return Remote(url, to or path.rsplit("/", 1)[-1], sha256)


def hub_file(repository: str, path: str, to: str | None = None) -> Remote:
    """A file of a data set on the Hugging Face hub, whose hash is not pinned."""
    url = f"https://huggingface.co/datasets/{repository}/resolve/main/{path}"
    return Remote(url, to or path.rsplit("/", 1)[-1], None)


def benchmark_folder(name: str) -> Path:
    """Where the files of benchmark `name` are kept."""
    return cache_folder() / "benchmarks" / name


def fetch(
    remotes: Sequence[Remote], folder: Path, tell: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Download what `folder` does not have yet, in the official layout; a file that is there is checked.

    Args:
        tell: called with a line per file: its path and hash, and whether the hash was pinned.

    Raises:
        InputError: a file cannot be had, or is not the one that was pinned (nothing is kept of it).
    """
    paths = []
    for remote in remotes:
        path = folder / remote.path
        content = path.read_bytes() if path.is_file() else _download(remote.url)
        found = hashlib.sha256(content).hexdigest()
        if remote.sha256 not in (None, found):
            origin = path if path.is_file() else remote.url
            raise InputError(f"{origin} has sha256 {found}, expected {remote.sha256}: not the published file")
        if not path.is_file():
            _keep(content, path)
        pinned = "as pinned" if remote.sha256 else "no hash is published to check it by"
        tell(f"{path} sha256 {found} ({pinned})")
        paths.append(path)
    return paths


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content: bytes = response.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise InputError(f"{url} cannot be downloaded: {getattr(error, 'reason', error)}") from error
    return content


def _keep(content: bytes, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
