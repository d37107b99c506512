"""Yes/no questions with known answers to fit on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from regaze.demo.phrases import existence_question
from regaze.interventions.fitting.caption_pairs import demo_pairs
from regaze.interventions.fitting.examples import Examples, read_lines
from regaze.reading import StrPath

_Name = Annotated[str, Field(min_length=1, max_length=4096)]
_SAMPLE = '{"image": "1.jpg", "text": "Is there a dog in the image?", "label": "yes"}'


class QuestionEntry(BaseModel):
    """A line of a file of questions: POPE's, perhaps with the image that lacks what is asked about."""

    model_config = ConfigDict(strict=True, extra="allow")

    image: _Name
    text: Annotated[str, Field(min_length=1, max_length=100_000, pattern=r"\S")]
    label: Literal["yes", "no"]
    object_image: _Name | None = None


@dataclass(frozen=True)
class Question:
    """A yes/no question about an image.

    Attributes:
        object_image: the image with the object of the question blacked out; None: not known.
    """

    image: Path
    name: str
    text: str
    label: str
    object_image: Path | None = None


def demo_questions() -> Examples:
    """About the last thing of each true caption of the demo's pairs, and of each invented one."""
    pairs = demo_pairs()
    items = []
    for pair in pairs.items:
        for caption, label in ((pair.true, "yes"), (pair.invented, "no")):
            found = re.search(r" an? ([a-z ]+)\.$", caption)
            assert found is not None
            items.append(Question(pair.image, pair.name, existence_question(found[1]), label))
    return Examples(tuple(items), pairs.source, pairs.sha256)


def read_questions(path: StrPath, images: StrPath | None = None) -> Examples:
    """The questions of a JSON-lines file in POPE's format: {"image", "text", "label"} in each line.

    "object_image" may name the image with the object of the question blacked out.

    Args:
        images: the folder of the images; default: that of the file.

    Raises:
        InputError: the file cannot be read, a line is no such question, or an image is not there.
    """
    return read_lines(path, images, QuestionEntry, _question, _SAMPLE)


def _question(entry: QuestionEntry, find: Callable[[str], Path]) -> Question:
    blacked = None if entry.object_image is None else find(entry.object_image)
    return Question(find(entry.image), entry.image, entry.text, entry.label, blacked)
