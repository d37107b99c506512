"""Pairs of captions to fit on: of one image a true one, and one with objects that are not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from regaze.demo.shipped import FITTING_FILE
from regaze.interventions.fitting.examples import Examples, read_lines
from regaze.reading import StrPath

_Caption = Annotated[str, Field(min_length=1, max_length=100_000, pattern=r"\S")]
_SAMPLE = '{"image": "1.jpg", "value": "A dog.", "h_value": "A dog and a cat."}'


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


def demo_pairs() -> Examples:
    """Pairs about scenes that the demo model was not trained on and that no benchmark asks about."""
    return read_pairs(FITTING_FILE, name="demo")


def read_pairs(path: StrPath, images: StrPath | None = None, *, name: str | None = None) -> Examples:
    """The pairs of a JSON-lines file: {"image", "value", "h_value"} and perhaps "question" in each line.

    `value` is a true caption, `h_value` one with invented objects. The released data of VTI and of LURE are
    such files.

    Args:
        images: the folder of the images; default: that of the file. name: of the data; default: the file's.

    Raises:
        InputError: the file cannot be read, a line is no such pair, or an image is not there.
    """
    return read_lines(path, images, PairEntry, _pair, _SAMPLE, name)


def _pair(entry: PairEntry, find: Callable[[str], Path]) -> CaptionPair:
    return CaptionPair(find(entry.image), entry.image, entry.value, entry.h_value, entry.question)
