"""CRPE: what is there, and how things relate (Wang et al., ECCV 2024, arXiv 2402.19474).

Single-choice questions, each put four times with its options rotated: only four right answers count, so that
chance is 0.4 %. Existence is one file; in that of relations, a question leaves out the subject, the predicate
or the object of a triplet.

`official`
    One character is an answer; rows are grouped by their place, not by their question.
`vlmevalkit-letter`, `vlmevalkit-text`
    First letters and texts of options, under both assumptions on its table.
`lmms-eval`
    Right rows, not questions; option texts are looked for before letters.
`regaze`
    Ours: rows are grouped by their question, answers read by `multiple_choice.read_choice`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from regaze.bed.scenes import BED
from regaze.demo.shipped import DEMO, SceneSet
from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import IMAGE_TOKEN, About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import hub_file
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.crpe.questions import LETTERS, read_options
from regaze.eval.benchmarks.crpe.scorers import CATEGORIES, CrpeReference, scorers
from regaze.reading import StrPath

SPLITS = ("exist", "relation")
HUB = "OpenGVLab/CRPE"
FILES = {split: f"crpe_{split}.jsonl" for split in SPLITS}
#: What lmms-eval appends, on a line of its own.
LMMS_EVAL_SUFFIX = "\nPlease answer directly with only the letter of the correct option and nothing else."


@dataclass(frozen=True)
class Crpe(BaseBenchmark):
    """The rows, a split per category.

    Attributes:
        style: The published text as it stands, or with lmms-eval's request for a letter.
        likelihood: Do not show the options: the answer is the likeliest of them behind the bare question, the
            same for all rotations.
    """

    items: tuple[Item, ...]
    style: Literal["official", "lmms-eval"] = "official"
    likelihood: bool = False
    name: str = "crpe"
    splits: ClassVar[tuple[str, ...]] = SPLITS
    about: ClassVar[About] = About(
        title="CRPE",
        paper="Wang et al., ECCV 2024, arXiv 2402.19474",
        licence="Apache-2.0",
        images="COCO val2017 (Flickr photographs, a licence each) and abnormal_images, in the data set's "
        "repository on the hub",
        home="https://github.com/OpenGVLab/all-seeing",
        hub=HUB,
        files=tuple(hub_file(HUB, name) for name in FILES.values()),
    )

    def __post_init__(self) -> None:
        if self.likelihood:  # sorted, so that rotations are one request
            ranked = (replace(item, options=tuple(sorted(item.reference.options))) for item in self.items)
            object.__setattr__(self, "items", tuple(ranked))

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        splits: Sequence[str] = SPLITS,
        limit: int | None = None,
        **options: Any,
    ) -> Crpe:
        """crpe_exist.jsonl and crpe_relation.jsonl in `folder`.

        Args:
            images: Folder with coco/val2017 and abnormal_images. What it lacks is looked for in `folder`.
            splits: Which of the files; lmms-eval's task is relation alone.
            limit: Rows per category; the rotations of a question stay together.

        Raises:
            InputError: An unknown split, a file is missing, or a row is malformed; names file and line.
        """
        limit_items((), limit)
        if not splits or not set(splits) <= set(SPLITS):
            raise InputError(f"CRPE has the splits {', '.join(SPLITS)}, got {', '.join(splits) or 'none'}")
        folder, root = files.folders_of(folder, images, "")
        items: list[Item] = []
        for split in splits:
            path = files.find_file(folder, FILES[split])
            rows = [(record, f"{path}:{line}") for line, record in files.read_records(path)]
            items += _items(split, rows, (root, folder))
        return cls._limited(items, limit, **options)

    @classmethod
    def from_hub(
        cls,
        images: StrPath | None = None,
        *,
        splits: Sequence[str] = SPLITS,
        revision: str | None = None,
        limit: int | None = None,
        **options: Any,
    ) -> Crpe:
        """The files of the hub's data set, among them abnormal_images.

        Args:
            images: Folder with coco/val2017, which is no part of the data set.
            revision: Of the data set, whose questions have changed twice.

        Raises:
            InputError: As `load` and `hub.fetch_files`; no `images`.
        """
        if images is None:
            raise InputError(f"{HUB} has none of COCO's photographs: --images FOLDER with coco/val2017")
        names = tuple(FILES.values())
        folder = hub.fetch_files(HUB, names, optional=("abnormal_images/*",), revision=revision)
        return cls.load(folder, images, splits=splits, limit=limit, **options)

    @classmethod
    def of_demo(cls, limit: int | None = None, *, likelihood: bool = True) -> Crpe:
        """What is there, and what is left of, right of, above or below what, in the demo's scenes."""
        return cls._of_scenes(DEMO, limit, likelihood)

    @classmethod
    def of_bed(cls, limit: int | None = None, *, likelihood: bool = False) -> Crpe:
        """As `of_demo`, about the bed's scenes; the bed was taught letters."""
        return cls._of_scenes(BED, limit, likelihood)

    @classmethod
    def _of_scenes(cls, shipped: SceneSet, limit: int | None, likelihood: bool) -> Crpe:
        from regaze.eval.benchmarks.crpe.demo import rows

        numbered = enumerate(rows(shipped.scenes()), start=1)
        records = [(record, f"{shipped.name}:{number}") for number, record in numbered]
        items = _items(shipped.name, records, (shipped.images,))
        return cls._limited(items, limit, likelihood=likelihood)

    @classmethod
    def _limited(cls, items: Sequence[Item], limit: int | None, **options: Any) -> Crpe:
        groups = {item.key: item.reference.question for item in items}
        return cls(limit_items(items, limit, groups), **options)

    def prompt(self, item: Item) -> str:
        if self.likelihood:
            return read_options(item.question, item.source)[0]
        return item.question.strip() + LMMS_EVAL_SUFFIX if self.style == "lmms-eval" else item.question

    def scorers(self) -> Sequence[Scorer]:
        """All rules; of likelihoods, whose answers are texts of options, our own alone."""
        rules = scorers([item.reference.category for item in self.items] or CATEGORIES)
        return [rule for rule in rules if rule.name == "regaze"] if self.likelihood else rules

    def groups(self) -> dict[str, list[int]]:
        """One group, with a figure per category."""
        return {"all": list(range(len(self.items)))}


def _items(split: str, rows: Iterable[tuple[Any, str]], images: Sequence[Path]) -> list[Item]:
    """The rows of a file; what they rotate is found by image, question and options."""
    seen: Counter[Hashable] = Counter()
    return [_item(split, record, images, source, seen) for record, source in rows]


def _item(split: str, record: Any, images: Sequence[Path], source: str, seen: Counter[Hashable]) -> Item:
    number = str(files.require_field(record, "question_id", (int, str), source))
    text = files.require_field(record, "text", str, source)
    image = files.require_field(record, "image", str, source)
    letter = files.require_field(record, "correct_option", str, source).strip()
    category = files.require_field(record, "category", str, source)
    question, options = read_options(text, source)
    if len(letter) != 1 or letter not in LETTERS or category not in CATEGORIES:
        raise InputError(
            f"{source}: expected a correct_option of A to D and a category of {', '.join(CATEGORIES)}, got "
            f"{letter!r} and {category!r}"
        )
    if IMAGE_TOKEN in text:
        raise InputError(f"{source}: {IMAGE_TOKEN} cannot be part of a question, got {text!r}")
    right = options[LETTERS.index(letter)]
    rotated = (category, image, question, frozenset(options), right)
    seen[rotated, options] += 1  # a question that is there twice has each order of its options twice
    reference = CrpeReference(category, options, letter, (*rotated[:3], right, seen[rotated, options]))
    key = f"{split}/{number}"
    return Item(key, category, _find_image(image, images), text, letter, source, reference, id=number)


def _find_image(name: str, folders: Sequence[Path]) -> Path:
    """The image in the first folder that has it; where it belongs, if none has."""
    return next((folder / name for folder in folders if os.path.isfile(folder / name)), folders[0] / name)
