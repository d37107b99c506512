"""RITUAL: random image transformations as a universal anti-hallucination lever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from PIL import Image
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from regaze.errors import InputError, UnsupportedModelError
from regaze.interventions.base import Method
from regaze.interventions.contrastive import Contrastive, add_logits
from regaze.interventions.controls import Sharpen
from regaze.interventions.facts import Facts
from regaze.interventions.ritual.transforms import drawn
from regaze.toolkit.model.branches import with_media
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.pixels import PIXELS, seen_images, to_pixels

Name = Literal["random", "horizontal_flip", "vertical_flip", "rotation", "colour", "blur", "crop"]


@dataclass(frozen=True)
class RITUAL(Contrastive):
    """Add the logits of the same prompt about randomly transformed images.

    Source: Woo et al., "RITUAL: Random Image Transformations as a Universal Anti-hallucination Lever in Large
    Vision Language Models" (arXiv:2405.17821). One of six transforms is drawn for each image: flips, a
    rotation, colours, a blur, a crop. `alpha` times the logits of the branch about the transformed images are
    added to the user's, and tokens less likely than `beta` times the likeliest one are excluded, by the
    user's logits alone. The draw follows from `seed` and the image.

    The images are those that the model sees, read back from the pixel values, and they keep that size, so
    that the branch has as many image tokens; the release transforms the photo before its processor. Adding
    sharpens the distribution: with equal logits it samples at a temperature of 1 / (1 + alpha), a quarter.
    Compare it under sampling with a plain model at that temperature.
    """

    name: ClassVar[str] = "ritual"
    summary: ClassVar[str] = "add the logits of a branch about randomly transformed images"
    source: ClassVar[str] = "arXiv:2405.17821"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "two rows per prompt in one forward, with the cache of both"
    facts: ClassVar[Facts] = Facts(edits=("logits",), cost="two rows", needs=("second context",))
    release: ClassVar[str] = (
        "sangminwoo/RITUAL, MIT. Acts on samples only: its greedy search is the plain model's. Its draws are "
        "from global generators, so that an answer depends on all before it. RITUAL+, in which the model "
        "chooses the transform, has no code."
    )

    alpha: NonNegativeFloat = field(
        default=3.0, metadata={"help": "weight of the transformed images' logits (0: none)"}
    )
    transform: Annotated[
        Name | Callable[[Image.Image], Image.Image],
        Field(
            description="random, horizontal_flip, vertical_flip, rotation, colour, blur, crop or a function"
        ),
    ] = field(default="random", metadata={"help": "one of six for each image, or a function of a PIL image"})
    seed: NonNegativeInt = field(default=0, metadata={"help": "seed of the draws"})

    def controls(self) -> Sequence[Method]:
        return (Sharpen(self.alpha, self.beta),) if self.alpha else ()

    @property
    def branch(self) -> str:
        transform = self.transform if isinstance(self.transform, str) else f"function {id(self.transform)}"
        return f"ritual: {transform}, {self.seed}"

    def negative(self, context: Context) -> Branch:
        """The branch about the transformed images, whose logits are added."""
        given = [name for name in PIXELS if context.inputs.get(name) is not None]
        if given != ["pixel_values"]:
            found = ", ".join(given) or "no pixels"
            raise UnsupportedModelError(
                f"RITUAL transforms `pixel_values`, but the forward was given {found}"
            )
        processor, layout = context.reader.processor.image_processor, context.reader.family.pixels
        images = seen_images(layout, processor, context.inputs)
        transformed = [self._transformed(image) for image in images]
        return with_media(context, pixel_values=to_pixels(processor, transformed, context.inputs))

    def combined(self, logits: Tensor, other: Tensor, where: Tensor | None) -> LogitsCombination:
        return add_logits(logits, other, self.alpha, self.beta, where)

    def _transformed(self, image: Image.Image) -> Image.Image:
        if isinstance(self.transform, str):
            return drawn(image, self.transform, self.seed)
        result = self.transform(image)
        if not isinstance(result, Image.Image) or result.size != image.size:
            size = getattr(result, "size", type(result).__name__)
            raise InputError(f"RITUAL's transform must give a PIL image of size {image.size}, it gave {size}")
        return result
