"""Random objects and random boxes in the place of those that a detector found."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import NonNegativeInt

from regaze.demo.world import CATEGORIES
from regaze.errors import BadParameterError
from regaze.interventions.base import Intervention, Method, MultiPassMethod
from regaze.interventions.controls.base import InterventionVariant, Variant
from regaze.interventions.controls.variants import with_behaviour
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True)
class RandomObjects(InterventionVariant):
    """The method with as many other names, drawn at random, in the place of the detected objects.

    They are names that the method looks for, else those that its detector knows, else 67 categories of COCO,
    and none of the detected ones as far as there are enough others. The draw follows from `seed` and the
    image. What is left of a method under this is to be given a list of objects, whatever they are.
    """

    name: ClassVar[str] = "random-objects"
    summary: ClassVar[str] = "the method with as many random names as objects were detected"
    source: ClassVar[str] = "ours"
    edits: ClassVar[str] = "as the method"
    cost: ClassVar[str] = "as the method"

    seed: NonNegativeInt = field(default=0, metadata={"help": "seed of the draws"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.of, "found_in"):
            raise BadParameterError(
                f"'random-objects' takes a method that names detected objects, such as marine; "
                f"{self.of.name!r} does not"
            )

    def for_model(self, config: Any) -> Intervention:
        changed: Intervention = with_behaviour(self.of, _OtherNames, object_seed=self.seed)
        return changed


class _OtherNames(Intervention):
    """Replaces the names that the method beneath found."""

    object_seed: int

    @property
    def branch(self) -> str:
        beneath: Any = super()
        return f"{beneath.branch}, random names {self.object_seed}"

    def found_in(self, image: Image.Image, device: torch.device) -> tuple[str, ...]:
        beneath: Any = super()
        method: Any = self  # parameters are the instance's
        names = method.objects or method.vocabulary(device) or CATEGORIES
        return other_names(beneath.found_in(image, device), names, _rng(self.object_seed, image))


@dataclass(frozen=True)
class RandomBoxes(Variant, MultiPassMethod):
    """The method with the detected boxes moved: boxes of the same sizes at random places in the image.

    The draw follows from `seed`, the image and what was looked for. What is left of a method under this is to
    look at parts of the image of that size, wherever they are.
    """

    name: ClassVar[str] = "random-boxes"
    summary: ClassVar[str] = "the method with boxes of the same sizes at random places"
    source: ClassVar[str] = "ours"
    edits: ClassVar[str] = "as the method"
    cost: ClassVar[str] = "as the method"
    takes: ClassVar[type[Method]] = MultiPassMethod

    seed: NonNegativeInt = field(default=0, metadata={"help": "seed of the draws"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.of, "detections"):
            raise BadParameterError(
                f"'random-boxes' takes a method that looks at detected boxes, such as halc; "
                f"{self.of.name!r} does not"
            )

    def answer_batch(
        self, gaze: Gaze, images: list[list[Image.Image]], questions: list[str], options: dict[str, Any]
    ) -> list[Any]:
        method = with_behaviour(self.of, _MovedBoxes, box_seed=self.seed)
        results: list[Any] = method.answer_batch(gaze, images, questions, options)
        return results


class _MovedBoxes(Method):
    """Moves the boxes that the method beneath was given."""

    box_seed: int

    def detections(self, image: Image.Image, texts: Sequence[str] | None, device: Any) -> Any:
        beneath: Any = super()
        found = beneath.detections(image, texts, device)
        rng = _rng(self.box_seed, image, *(texts or ()))
        return replace(found, boxes=moved_boxes(found.boxes, image.size, rng))


def other_names(found: Sequence[str], names: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    """As many of the names as were found, others as far as there are enough of them."""
    others = [name for name in names if name not in found]
    drawn = [others[i] for i in rng.permutation(len(others))]
    return tuple((drawn + [found[i] for i in rng.permutation(len(found))])[: len(found)])


def moved_boxes(
    boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int], rng: np.random.Generator
) -> tuple[tuple[float, float, float, float], ...]:
    """Boxes of the same sizes anywhere in an image of `size` (width, height)."""
    moved = []
    for x0, y0, x1, y1 in boxes:
        wide, high = x1 - x0, y1 - y0
        left, upper = rng.uniform(0.0, size[0] - wide), rng.uniform(0.0, size[1] - high)
        moved.append((left, upper, left + wide, upper + high))
    return tuple(moved)


def _rng(seed: int, image: Image.Image, *texts: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(image.tobytes()), zlib.crc32("\n".join(texts).encode())])
