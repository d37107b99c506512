"""Pairs of captions to fit on: of one image a true one, and one with objects that are not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import fspath
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from regaze.demo.shipped import FITTING_FILE
from regaze.errors import InputError
from regaze.reading import StrPath, read_text

_Caption = Annotated[str, Field(min_length=1, max_length=100_000, pattern=r"\S")]


class PairEntry(BaseModel):
    """A line of a file of pairs; VTI's and LURE's files have these names."""

    model_config = ConfigDict(strict=True, extra="allow")

    image: Annotated[str, Field(min_length=1, max_length=4096)]
    value: _Caption
    h_value: _Caption
    question: _Caption | None = None


@dataclass(frozen=True)
class CaptionPair:
    """One image with a true and an invented caption.

    Attributes:
        image: the file. name: of the image in the data. question: the prompt that the captions answer; None:
            the method's own.
    """

    image: Path
    name: str
    true: str
    invented: str
    question: str | None = None


@dataclass(frozen=True)
class CaptionPairs:
    """Pairs in the order of their file. source: its name. sha256: of its content."""

    pairs: tuple[CaptionPair, ...]
    source: str
    sha256: str

    def first(self, count: int | None) -> CaptionPairs:
        """Those pairs, and as many of them as there are."""
        return CaptionPairs(self.pairs[:count], self.source, self.sha256)

    def __len__(self) -> int:
        return len(self.pairs)


def demo_pairs() -> CaptionPairs:
    """Pairs about scenes that the demo model was not trained on and that no benchmark asks about."""
    return read_pairs(FITTING_FILE, name="demo")


def read_pairs(path: StrPath, images: StrPath | None = None, *, name: str | None = None) -> CaptionPairs:
    """The pairs of a JSON-lines file: {"image", "value", "h_value"} and perhaps "question" in each line.

    `value` is a true caption, `h_value` one with invented objects. The released data of VTI and of LURE are
    such files.

    Args:
        images: the folder of the images; default: that of the file. name: of the data; default: the file's.

    Raises:
        InputError: the file cannot be read, a line is no such pair, or an image is not there.
    """
    path = Path(fspath(path))
    text = read_text(path, "data file ")
    folder = path.parent if images is None else Path(fspath(images))
    pairs = [
        _pair(line, folder, f"{path}:{number}")
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    if not pairs:
        raise InputError(f"data file {path} has no pairs")
    return CaptionPairs(tuple(pairs), name or path.name, hashlib.sha256(text.encode()).hexdigest())


def _pair(line: str, folder: Path, place: str) -> CaptionPair:
    try:
        entry = PairEntry.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))[:80]
        example = json.dumps({"image": "1.jpg", "value": "A dog.", "h_value": "A dog and a cat."})
        raise InputError(
            f"{place}: {field or 'the line'}: {first['msg']}; expected such as {example}"
        ) from None
    image = folder / entry.image
    if not image.is_file():
        raise InputError(f"{place}: there is no image {image}; give the folder of the images with --images")
    return CaptionPair(image, entry.image, entry.value, entry.h_value, entry.question)


def images_of(pairs: Sequence[CaptionPair]) -> list[str]:
    """Their names in order, each once."""
    return list(dict.fromkeys(pair.name for pair in pairs))
