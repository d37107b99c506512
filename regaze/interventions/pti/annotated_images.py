"""Images with captions and with the objects in both: what PTI's directions are fitted on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from regaze.demo.shipped import OBJECTS_FILE
from regaze.errors import InputError
from regaze.interventions.fitting.examples import Examples, read_lines
from regaze.reading import StrPath
from regaze.toolkit.prompts.images import open_image

_Name = Annotated[str, Field(min_length=1, max_length=4096)]
_Text = Annotated[str, Field(min_length=1, max_length=100_000, pattern=r"\S")]
Box = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt]
_SAMPLE = '{"image": "1.jpg", "caption": "A cat on a mat.", "objects": ["cat"], "boxes": [[10, 20, 90, 80]]}'


class ImageEntry(BaseModel):
    """A line of a file of annotated images; either "boxes" or "mask" says where the objects are."""

    model_config = ConfigDict(extra="allow")

    image: _Name
    caption: _Text
    objects: Annotated[list[_Text], Field(min_length=1, max_length=1000)]
    boxes: Annotated[list[Box], Field(min_length=1, max_length=1000)] | None = None
    mask: _Name | None = None

    @model_validator(mode="after")
    def _has_one_place(self) -> ImageEntry:
        if (self.boxes is None) == (self.mask is None):
            raise ValueError("boxes or mask must say where the objects are, and not both")
        return self


@dataclass(frozen=True)
class AnnotatedImage:
    """An image, its caption, and the objects in both.

    Attributes:
        image: the file. name: of the image in the data.
        objects: words or phrases of the caption that name objects.
        boxes: (left, top, right, bottom) in pixels, the latter two exclusive. mask: instead of boxes, a
            picture as large as the image that is black where there is no object.
    """

    image: Path
    name: str
    caption: str
    objects: tuple[str, ...]
    boxes: tuple[Box, ...] = ()
    mask: Path | None = None

    def parts(self) -> tuple[Image.Image, Image.Image]:
        """The image with its objects alone, and with the rest alone; black elsewhere.

        Raises:
            InputError: the image or its mask cannot be read, or they are of different sizes.
        """
        image = open_image(self.image)
        shown = self._shown(image)
        black = Image.new("RGB", image.size)
        return Image.composite(image, black, shown), Image.composite(black, image, shown)

    def _shown(self, image: Image.Image) -> Image.Image:
        """White where there is an object."""
        if self.mask is not None:
            mask = open_image(self.mask)
            if mask.size != image.size:
                raise InputError(
                    f"{self.mask} is {mask.size} pixels, but its image {self.image} {image.size}"
                )
            return mask.convert("L").point(lambda value: 255 if value else 0)
        shown = Image.new("L", image.size)
        for left, top, right, bottom in self.boxes:
            if right > left and bottom > top:
                ImageDraw.Draw(shown).rectangle((left, top, right - 1, bottom - 1), fill=255)
        return shown

    def texts(self) -> tuple[str, str]:
        """The objects alone, and the caption without them."""
        return f"{', '.join(self.objects)}.", without_phrases(self.caption, self.objects)


def without_phrases(text: str, phrases: Sequence[str]) -> str:
    """A text without these words or phrases, and without the gaps that they leave."""
    longest_first = sorted(phrases, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(phrase)}(?!\w)" for phrase in longest_first)
    left = " ".join(re.sub(pattern, " ", text).split())
    return re.sub(r"\s+([.,;:!?])", r"\1", left)


def demo_images() -> Examples:
    """Scenes that the demo model was not trained on and that no benchmark asks about."""
    return read_images(OBJECTS_FILE, name="demo")


def read_images(path: StrPath, images: StrPath | None = None, *, name: str | None = None) -> Examples:
    """The annotated images of a JSON-lines file.

    Args:
        images: the folder of images and masks; default: that of the file. name: of the data; default: the
            file's.

    Raises:
        InputError: the file cannot be read, a line does not fit, or an image is not there.
    """
    return read_lines(path, images, ImageEntry, _annotated, _SAMPLE, name)


def _annotated(entry: ImageEntry, find: Callable[[str], Path]) -> AnnotatedImage:
    return AnnotatedImage(
        find(entry.image),
        entry.image,
        entry.caption,
        tuple(entry.objects),
        tuple(entry.boxes or ()),
        None if entry.mask is None else find(entry.mask),
    )
