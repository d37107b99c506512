"""R-Bench: relations between objects, yes or no (Wu et al., ICML 2024, arXiv 2406.16449).

Not VLMEvalKit's "R-Bench", which is about distorted images.

`image`
    Questions about a whole image.
`box`, `mask`
    Questions about a subject and an object that are marked on the image (`drawing`).

Scorers:

`official`
    POPE's rule with 1e-5 in denominators, averaged over five subsets that the authors drew.
`regaze`
    Ours, over all questions; unreadable answers are wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common.base import IMAGE_TOKEN, About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.r_bench.drawing import BOX, MASK, mark_text, marked_copy
from regaze.eval.benchmarks.r_bench.scorers import OFFICIAL, REGAZE, SUBSETS, RBenchReference
from regaze.reading import StrPath

SPLITS = ("image", BOX, MASK)
_LEVELS = {"image": "image-level", BOX: "instance-level", MASK: "instance-level"}


@dataclass(frozen=True)
class RBench(BaseBenchmark):
    """Questions about whole images, about boxes, or about masks; the bootstrap draws images."""

    items: tuple[Item, ...]
    suffix: str = ""
    name: str = "r-bench"
    about: ClassVar[About] = About(
        title="R-Bench",
        paper="Wu et al., ICML 2024, arXiv 2406.16449",
        licence="Apache-2.0",
        images="Open Images validation set; questions and images on Google Drive",
        home="https://github.com/mrwu-mac/R-Bench",
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        splits: Sequence[str] = ("image", BOX),
        suffix: str = "",
        limit: int | None = None,
    ) -> RBench:
        """image-level_filterd.json and instance-level_filterd.json in `folder`, with their files of subsets.

        Subsets are <level>_ids_1.json to _5.json; without them all questions count once. Masks are
        instance_mask/<question id>.png.

        Args:
            images: Folder of the images; `folder`/images by default.
            splits: image, box, mask.
            limit: Number of questions per split.

        Raises:
            InputError: A file is missing or malformed.
        """
        if not splits or not set(splits) <= set(SPLITS):
            raise InputError(f"R-Bench has the splits {', '.join(SPLITS)}, got {', '.join(splits) or 'none'}")
        folder, image_folder = files.folders_of(folder, images, "images")
        items: list[Item] = []
        for split in splits:
            path = files.find_file(folder, f"{_LEVELS[split]}_filterd.json")
            listed = _subsets(folder, _LEVELS[split])
            items += [
                _item(split, record, listed, image_folder, f"{path}:{line}")
                for line, record in files.read_records(path)
            ]
        chosen = limit_items(items, limit)
        return cls(tuple(_marked(item, folder / "instance_mask") for item in chosen), suffix)

    def prompt(self, item: Item) -> str:
        """The question; of marked objects with the colours of their marks."""
        question = item.question
        if item.split != "image":
            question = mark_text(question, item.reference.subject, item.reference.thing, item.split)
        return question + self.suffix

    def scorers(self) -> Sequence[Scorer]:
        return (OFFICIAL, REGAZE)

    def cluster(self, item: Item) -> str:
        """The image without marks."""
        scene: str = item.reference.scene
        return scene


def _subsets(folder: Path, level: str) -> list[Counter[str]]:
    """How often each of the five subsets lists each question id; none where there are no such files."""
    names = [f"{level}_ids_{number}.json" for number in range(1, SUBSETS + 1)]
    if not any((folder / f"{name}{end}").is_file() for name in names for end in ("", ".gz")):
        return []
    found = []
    for name in names:
        path = files.find_file(folder, name)
        ids = files.read_json(path)
        if not isinstance(ids, list) or not ids or not all(isinstance(each, (int, str)) for each in ids):
            raise InputError(f"{path}: expected a list of question ids")
        found.append(Counter(map(str, ids)))
    return found


def _item(split: str, record: Any, listed: list[Counter[str]], images: Path, source: str) -> Item:
    number = str(files.require_field(record, "question_id", (int, str), source))
    image = images / files.require_field(record, "image", str, source)
    question = files.require_field(record, "text", str, source)
    if IMAGE_TOKEN in question:
        raise InputError(f"{source}: {IMAGE_TOKEN} cannot be part of a question, got {question!r}")
    label = "no" if "no" in files.require_field(record, "label", str, source).lower() else "yes"
    reference = RBenchReference(label, tuple(each[number] for each in listed), image.name)
    if split != "image":
        reference = replace(reference, **_instance(record, source))
    return Item(f"{split}/{number}", split, image, question, label, source, reference, id=number)


def _instance(record: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Subject and object of a question, and their boxes."""
    out: dict[str, Any] = {
        "subject": files.require_field(record, "subject", str, source),
        "thing": files.require_field(record, "object", str, source),
    }
    for key in ("sub_box", "obj_box"):
        box = files.require_field(record, key, list, source)
        numbers = [edge for edge in box if isinstance(edge, (int, float)) and -0.01 <= edge <= 1.01]
        if len(box) != 4 or len(numbers) != 4 or box[0] > box[2] or box[1] > box[3]:
            raise InputError(
                f"{source}: {key!r} must be left, upper, right and lower edge as fractions, got {box}"
            )
        out[key] = tuple(map(float, box))
    return out


def _marked(item: Item, masks: Path) -> Item:
    """The item about its image with marks."""
    if item.split == "image" or item.image is None:
        return item
    mask = masks / f"{item.id}.png" if item.split == MASK else None
    image = marked_copy(item.image, item.reference.sub_box, item.reference.obj_box, mask)
    return replace(item, image=image)
