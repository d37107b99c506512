"""What a fit has measured so far, a file per part, so that the same command continues after a stop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regaze.errors import InputError
from regaze.reading import StrPath
from regaze.writing import make_folder, replacing


class Parts:
    """Tensors by number, each in a file of its own.

    Args:
        folder: where they lie; None keeps them in memory.
        key: hash of everything that decides the parts; parts of another key are made anew.
    """

    def __init__(self, folder: StrPath | None, key: str):
        self._folder, self._key = None if folder is None else make_folder(folder), key
        self._memory: dict[str, Tensor] = {}

    def get_or_make(self, name: str, make: Callable[[], Tensor]) -> None:
        """Make the part `name` unless it is there. Raises InputError where it cannot be written."""
        if self._folder is None:
            if name not in self._memory:
                self._memory[name] = make()
            return
        if self._known(name):
            return
        tensor = make().contiguous().cpu()
        try:
            with replacing(self._path(name)) as partial:
                save_file({"part": tensor}, str(partial), {"key": self._key})
        except SafetensorError as error:
            raise InputError(f"{self._path(name)} cannot be written: {error}") from None

    def rows(self, name: str, rows: slice) -> Tensor:
        """Some rows of a part; of a file no more is read than these."""
        if self._folder is None:
            return self._memory[name][rows]
        with safe_open(self._path(name), "pt") as file:
            return file.get_slice("part")[rows]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a part."""
        if self._folder is None:
            return tuple(self._memory[name].shape)
        with safe_open(self._path(name), "pt") as file:
            return tuple(file.get_slice("part").get_shape())

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.safetensors"

    def _known(self, name: str) -> bool:
        try:
            with safe_open(self._path(name), "pt") as file:
                return (file.metadata() or {}).get("key") == self._key and "part" in file.keys()  # noqa: SIM118
        except (SafetensorError, OSError, UnicodeDecodeError):
            return False


def remove_parts(folder: StrPath) -> None:
    """Remove what `Parts` has written, and the folder if nothing else is in it."""
    with suppress(OSError):
        for path in Path(folder).glob("*.safetensors"):
            path.unlink()
        Path(folder).rmdir()
