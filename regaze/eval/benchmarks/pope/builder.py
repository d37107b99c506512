"""POPE for any set of images with lists of objects, by the rule of the official builder.

For each image, questions name the first objects of its list, each followed by a question about an absent
object: `random` draws one, `popular` takes the most frequent object of the set, `adversarial` the one that
most often occurs with the object of the question before. Ties keep the order of first occurrence.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.pope.published import SPLITS

TEMPLATE = "Is there a {} in the image?"


@dataclass(frozen=True)
class ObjectList:
    """An image and the distinct objects in it; questions name the first ones."""

    image: str
    objects: tuple[str, ...]


@dataclass
class PopeBuilder:
    """Builds the questions of a set of images.

    Args:
        images: Images with at least `per_image` objects each (see `enough_objects`).
        per_image: Number of present objects, and of absent objects, per image.
        template: The question, with {} for the object; " a " becomes " an " before a, e, i, o, u.
        imange: Reproduce a bug of the official builder, which turns every "a" of the template into "an".

    Attributes:
        frequency: Number of images with each object.
        co_occurrence: object -> number of images with each other object.

    Raises:
        InputError: There are no images, one has too few objects, or the template lacks {}.
    """

    images: Sequence[ObjectList]
    per_image: int = 3
    template: str = TEMPLATE
    imange: bool = False
    frequency: Counter[str] = field(init=False)
    co_occurrence: dict[str, Counter[str]] = field(init=False)

    def __post_init__(self) -> None:
        if not self.images or self.template.count("{}") != 1:
            raise InputError(f"expected images, and {{}} once in the template; got {self.template!r}")
        for each in self.images:
            if len(each.objects) < self.per_image:
                raise InputError(
                    f"{each.image}: {len(each.objects)} objects, expected at least {self.per_image}"
                )
        self.frequency = Counter(name for each in self.images for name in each.objects)
        self.co_occurrence = {name: Counter() for name in self.frequency}
        for each in self.images:
            for name in each.objects:
                self.co_occurrence[name].update(other for other in each.objects if other != name)

    def questions(self, split: str, rng: random.Random) -> list[dict[str, Any]]:
        """{"question_id", "image", "text", "label"} per question, ids from 1, labels alternating yes, no.

        Written as one JSON object per line they are a file for `Pope.from_files`.

        Args:
            rng: Draws absent objects: all of `random`, and those of the others once their list is exhausted.

        Raises:
            InputError: Unknown split, or an image from which no object of the set is absent.
        """
        if split not in SPLITS:
            raise InputError(f"POPE has the splits {', '.join(SPLITS)}, not {split!r}")
        entries: list[dict[str, Any]] = []
        for each in self.images:
            used = set(each.objects)
            for present in each.objects[: self.per_image]:
                absent = self._absent(split, present, used, rng, each.image)
                used.add(absent)
                for name, label in ((present, "yes"), (absent, "no")):
                    number, text = len(entries) + 1, self._text(name)
                    entries.append({"question_id": number, "image": each.image, "text": text, "label": label})
        return entries

    def _absent(self, split: str, present: str, used: set[str], rng: random.Random, image: str) -> str:
        ranked = {
            "random": Counter[str](),
            "popular": self.frequency,
            "adversarial": self.co_occurrence[present],
        }[split]
        for name, _ in ranked.most_common():
            if name not in used:
                return name
        names = list(self.frequency)
        if used.issuperset(names):
            raise InputError(f"{image}: no object of the set is absent, so none can be asked about")
        while (name := rng.choice(names)) in used:  # the draws of the official builder
            pass
        return name

    def _text(self, name: str) -> str:
        template = self.template
        if name[0] in "aeiou":
            template = template.replace("a", "an") if self.imange else template.replace(" a {}", " an {}")
        return template.format(name)


def enough_objects(images: Iterable[ObjectList], per_image: int = 3) -> list[ObjectList]:
    """The images that the builder can use."""
    return [each for each in images if len(each.objects) >= per_image]
