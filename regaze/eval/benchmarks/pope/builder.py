"""POPE for any set of images with lists of objects, by the rule of the official builder.

For each image the first objects of its list are asked about, every one followed by an object that is not
there: `random` draws one, `popular` takes the most frequent of the set, `adversarial` the one that most often
meets the object of the question before. Ties keep the order in which objects were met.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.pope.benchmark import SPLITS

TEMPLATE = "Is there a {} in the image?"


@dataclass(frozen=True)
class ObjectList:
    """An image and the distinct objects in it; the first ones are asked about."""

    image: str
    objects: tuple[str, ...]


@dataclass
class PopeBuilder:
    """Builds the questions of a set of images.

    Args:
        images: with at least `per_image` objects each (see `enough_objects`).
        per_image: objects that are there and objects that are not, per image.
        template: the question, {} standing for the object; " a " becomes " an " before a, e, i, o, u.
        imange: keep the official builder's slip, which turns every "a" of the template into "an".

    Raises:
        InputError: an image with too few objects, none at all, or a template without {}.
    """

    images: Sequence[ObjectList]
    per_image: int = 3
    template: str = TEMPLATE
    imange: bool = False
    frequency: Counter[str] = field(init=False)
    company: dict[str, Counter[str]] = field(init=False)

    def __post_init__(self) -> None:
        if not self.images or self.template.count("{}") != 1:
            raise InputError(f"expected images, and {{}} once in the template; got {self.template!r}")
        for each in self.images:
            if len(each.objects) < self.per_image:
                raise InputError(
                    f"{each.image}: {len(each.objects)} objects, expected at least {self.per_image}"
                )
        self.frequency = Counter(name for each in self.images for name in each.objects)
        self.company = {name: Counter() for name in self.frequency}
        for each in self.images:
            for name in each.objects:
                self.company[name].update(other for other in each.objects if other != name)

    def questions(self, split: str, rng: random.Random) -> list[dict[str, Any]]:
        """{"question_id", "image", "text", "label"} per question, ids from 1, labels alternating yes, no.

        Args:
            rng: draws the random absent objects; the others only draw when their list is exhausted.

        Raises:
            InputError: an unknown split, or an image with nothing left that is absent.
        """
        if split not in SPLITS:
            raise InputError(f"POPE has the splits {', '.join(SPLITS)}, not {split!r}")
        entries: list[dict[str, Any]] = []
        for each in self.images:
            asked = set(each.objects)
            for present in each.objects[: self.per_image]:
                absent = self._absent(split, present, asked, rng, each.image)
                asked.add(absent)
                for name, label in ((present, "yes"), (absent, "no")):
                    number, text = len(entries) + 1, self._text(name)
                    entries.append({"question_id": number, "image": each.image, "text": text, "label": label})
        return entries

    def _absent(self, split: str, present: str, asked: set[str], rng: random.Random, image: str) -> str:
        ranked = {"random": Counter[str](), "popular": self.frequency, "adversarial": self.company[present]}[
            split
        ]
        for name, _ in ranked.most_common():
            if name not in asked:
                return name
        names = list(self.frequency)
        if asked.issuperset(names):
            raise InputError(f"{image}: no object of the set is absent, so none can be asked about")
        while (name := rng.choice(names)) in asked:  # rejected as the official builder does, draw for draw
            pass
        return name

    def _text(self, name: str) -> str:
        template = self.template
        if name[0] in "aeiou":
            template = template.replace("a", "an") if self.imange else template.replace(" a {}", " an {}")
        return template.format(name)


def enough_objects(images: Iterable[ObjectList], per_image: int = 3) -> list[ObjectList]:
    """The images that the builder can ask about."""
    return [each for each in images if len(each.objects) >= per_image]


def read_object_lists(path: Path) -> list[ObjectList]:
    """JSON lines of {"image", "objects"}, the official segmentation format.

    Raises:
        InputError: no such file, or a malformed line; names the file and the line.
    """
    lists = []
    for line, record in files.read_records(path):
        source = f"{path}:{line}"
        image = files.field(record, "image", str, source)
        objects = files.field(record, "objects", list, source)
        if not all(isinstance(name, str) and name for name in objects):
            raise InputError(f"{source}: 'objects' must be a list of names, got {objects!r}")
        lists.append(ObjectList(image, tuple(dict.fromkeys(objects))))
    return lists


def write_questions(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write questions in the official format, a JSON object per line."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
