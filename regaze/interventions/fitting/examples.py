"""`Examples`: what a fit is given, of whatever kind, and where it is from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from os import fspath
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from regaze.errors import InputError
from regaze.reading import StrPath, read_text

Entry = TypeVar("Entry", bound=BaseModel)


@dataclass(frozen=True)
class Examples:
    """Examples in the order of their file. source: its name. sha256: of its content."""

    items: tuple[Any, ...]
    source: str
    sha256: str

    def first(self, count: int | None) -> Examples:
        """Those examples, and as many of them as there are."""
        return Examples(self.items[:count], self.source, self.sha256)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def images(self) -> list[str]:
        """The names of their images in order, each once."""
        return list(dict.fromkeys(item.name for item in self.items))


def read_lines(
    path: StrPath,
    images: StrPath | None,
    schema: type[Entry],
    make: Callable[[Entry, Callable[[str], Path]], Any],
    sample: str,
    name: str | None = None,
) -> Examples:
    """The examples of a JSON-lines file.

    Args:
        images: the folder of the images; default: that of the file.
        schema: of a line. make: the example of an entry, given a function that finds an image by its name.
        sample: of a line, for the error. name: of the data; default: the file's.

    Raises:
        InputError: the file cannot be read, a line does not fit the schema, or an image is not there.
    """
    path = Path(fspath(path))
    text = read_text(path, "data file ")
    folder = path.parent if images is None else Path(fspath(images))
    items = []
    for number, line in enumerate(text.splitlines(), start=1):
        place = f"{path}:{number}"

        def find(image: str, place: str = place) -> Path:
            if not (folder / image).is_file():
                raise InputError(
                    f"{place}: there is no image {folder / image}; give the folder of the images by --images"
                )
            return folder / image

        if line.strip():
            items.append(make(_entry(line, schema, place, sample), find))
    if not items:
        raise InputError(f"data file {path} has no lines such as {sample}")
    return Examples(tuple(items), name or path.name, hashlib.sha256(text.encode()).hexdigest())


def _entry(line: str, schema: type[Entry], place: str, sample: str) -> Entry:
    try:
        return schema.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))[:80] or "the line"
        raise InputError(f"{place}: {field}: {first['msg']}; expected such as {sample}") from None
