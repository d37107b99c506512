"""POPE: is there an object in the image, yes or no (Li et al., EMNLP 2023, arXiv 2305.10355).

Half of the questions name an object that is not in the image. Each of three splits draws it differently: at
random, among the most frequent objects (popular), or among those that often occur with the objects in the
image (adversarial). The scoring rules are in `regaze.eval.benchmarks.common.yes_no`.

The COCO files were published four times, and figures on them differ:

`e3e3926` (same as 28f884a)
    2,910 random questions, "imange" in every question with "an". LLaVA's documentation pins it, OPERA and
    LLaVA-RLHF ship it: most published figures are on it.
`7ef3026`
    500 other images; public for one day.
`9b54106`
    The images of e3e3926, 3,000 random questions, "imange" left in the adversarial file. VCD and HALC ship
    it.
`head`
    3,000 questions each, no typing errors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from regaze.bed.scenes import BED
from regaze.demo.shipped import DEMO, SceneSet
from regaze.errors import InputError
from regaze.eval import files as benchmark_files
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import IMAGE_TOKEN, About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import github_file
from regaze.eval.benchmarks.common.earlier import picture_file, read_earlier
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.common.yes_no import LABELS, SCORERS
from regaze.eval.benchmarks.pope.published import (
    FILES,
    HEAD,
    REPOSITORY,
    SPLITS,
    VERSIONS,
    coco_version,
    question_files,
)
from regaze.reading import StrPath

#: Appended by LLaVA's protocol. Without it models answer in sentences, which scorer `harness` cannot read.
SUFFIX = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class Pope(BaseBenchmark):
    """A set of POPE questions.

    Attributes:
        files: {split: question file} where the questions were read from files (see `from_files`).
        images: Folder of the images of these files.
        limit: Number of questions per split that the files were cut to.
    """

    items: tuple[Item, ...]
    suffix: str = SUFFIX
    name: str = "pope"
    files: Mapping[str, Path] = field(default_factory=dict, repr=False)
    images: Path | None = None
    limit: int | None = None
    splits: ClassVar[tuple[str, ...]] = SPLITS
    about: ClassVar[About] = About(
        title="POPE",
        paper="Li et al., EMNLP 2023, arXiv 2305.10355",
        licence="MIT",
        images="COCO val2014 (Flickr photographs, a licence each); GQA: Visual Genome",
        home=f"https://github.com/{REPOSITORY}",
        hub="lmms-lab-encoder/POPE",
        files=question_files(),
    )

    def __post_init__(self) -> None:
        if IMAGE_TOKEN in self.suffix:
            raise InputError(f"suffix {self.suffix!r}: {IMAGE_TOKEN} cannot be part of a question")

    @classmethod
    def from_files(
        cls,
        files: Mapping[str, StrPath],
        images: StrPath,
        *,
        suffix: str = SUFFIX,
        limit: int | None = None,
        allow_urls: bool = False,
    ) -> Pope:
        """Questions from files in the official format (`read_questions`).

        Args:
            files: {split: question file}.
            images: Folder of the images.
            limit: Number of questions per split, None for all.
            allow_urls: Download images that are named by a URL.

        Raises:
            InputError: A file or the folder is missing, a line is malformed (named by file and line), a
                question or the suffix holds the image token, or there are no questions.
        """
        limit_items((), limit)  # refuse a bad limit before any file is read
        paths = {split: Path(path) for split, path in files.items()}
        folder = benchmark_files.require_folder(images, "image folder")
        items = [
            item for split, path in paths.items() for item in read_questions(path, folder, split, allow_urls)
        ]
        return cls(limit_items(items, limit), suffix, files=paths, images=folder, limit=limit)

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        dataset: str = "coco",
        version: str = "head",
        splits: Sequence[str] = SPLITS,
        suffix: str = SUFFIX,
        limit: int | None = None,
    ) -> Pope:
        """The published files of `dataset` in `folder`, or (COCO) in the version's folder in it.

        Args:
            images: Folder of the images; `folder`/images by default.
            dataset: coco, aokvqa or gqa.
            version: Version of the COCO files (`VERSIONS`); the other data sets have one.

        Raises:
            InputError: Unknown data set, version or split, and as `from_files`.
        """
        if dataset not in FILES or version not in VERSIONS or not set(splits) <= set(SPLITS):
            raise InputError(
                f"POPE has the data sets {', '.join(FILES)}, versions {', '.join(VERSIONS)} and splits "
                f"{', '.join(SPLITS)}; got {dataset!r}, {version!r}, {', '.join(splits)}"
            )
        folder, images = benchmark_files.folders_of(folder, images, "images")
        of_version = folder / version
        place = of_version if dataset == "coco" and os.path.isdir(of_version) else folder
        paths = {
            split: benchmark_files.find_file(place, FILES[dataset].format(split=split)) for split in splits
        }
        return cls.from_files(paths, images, suffix=suffix, limit=limit)

    @classmethod
    def of_demo(
        cls, limit: int | None = None, splits: Sequence[str] = SPLITS, *, suffix: str = SUFFIX
    ) -> Pope:
        """Questions about the scenes of the demo."""
        return cls._of_scenes(DEMO, splits, suffix, limit)

    @classmethod
    def of_bed(cls, limit: int | None = None, splits: Sequence[str] = SPLITS, *, suffix: str = "") -> Pope:
        """Questions about the scenes of the bed, without a suffix, as most that it was taught."""
        return cls._of_scenes(BED, splits, suffix, limit)

    @classmethod
    def _of_scenes(cls, shipped: SceneSet, splits: Sequence[str], suffix: str, limit: int | None) -> Pope:
        paths = {split: shipped.questions_file(split) for split in splits}
        return cls.from_files(paths, shipped.images, suffix=suffix, limit=limit)

    @classmethod
    def from_hub(cls, *, suffix: str = SUFFIX, limit: int | None = None) -> Pope:
        """The hub's copy of the current COCO files, all three splits."""
        items: list[Item] = []
        for row in hub.read_rows(cls.about.hub, split="test"):
            record = {"image": "-", "text": row.values.get("question"), "label": row.values.get("answer")}
            split = str(row.values.get("category", "all"))
            items.append(question_item(record, row.image, split, len(items) + 1, row.source))
        return cls(limit_items(items, limit), suffix)

    def scorers(self) -> Sequence[Scorer]:
        return SCORERS

    def describe(self) -> dict[str, Any]:
        """As `BaseBenchmark.describe`; of files also their hashes and versions, and the limit."""
        described = super().describe()
        if self.files:
            described |= {"files": {split: _describe_file(p) for split, p in self.files.items()}}
            described |= {"limit": self.limit}
        return described


@dataclass(frozen=True)
class PopeV2(BaseBenchmark):
    """POPEv2: the same question on a COCO train2017 image and on a copy with the object painted out.

    The bootstrap draws an image and its copy together.
    """

    items: tuple[Item, ...]
    suffix: str = SUFFIX
    name: str = "popev2"
    about: ClassVar[About] = About(
        title="POPEv2",
        paper="published with POPE's repository, 2025",
        licence="MIT",
        images="COCO train2017 (Flickr photographs, a licence each) and edited copies of them",
        home=f"https://github.com/{REPOSITORY}",
        files=(
            github_file(
                REPOSITORY,
                HEAD,
                "POPEv2/dataset/annotations.json",
                "321d8dd41a7bd9be5f863c88f40bf50965b6e5f3345db42fe04fcb4c6ba9570e",
            ),
        ),
    )

    @classmethod
    def load(
        cls, folder: StrPath, images: StrPath | None = None, *, suffix: str = SUFFIX, limit: int | None = None
    ) -> PopeV2:
        """annotations.json (or popev2_annotations.json) in `folder`; image names are relative to `images`."""
        folder, images = benchmark_files.folders_of(folder, images, "")
        path = benchmark_files.find_file(folder, "annotations.json", "popev2_annotations.json")
        root = benchmark_files.require_folder(images, "image folder")
        items = []
        for number, (line, record) in enumerate(benchmark_files.read_records(path), start=1):
            source = f"{path}:{line}"
            name = benchmark_files.require_field(record, "image_name", str, source).lstrip("/")
            renamed = {"image": name, "text": record.get("query"), "label": record.get("label")}
            items.append(question_item(renamed, root / name, "popev2", number, source))
        pairs = {item.key: item.image.name for item in items if item.image is not None}
        return cls(limit_items(items, limit, pairs), suffix)

    def scorers(self) -> Sequence[Scorer]:
        return SCORERS

    def cluster(self, item: Item) -> str:
        return item.image.name if item.image is not None else item.key


def read_questions(path: StrPath, images: StrPath, split: str, allow_urls: bool = False) -> list[Item]:
    """Questions of a file in the official format.

    The file holds JSON lines (or one JSON array) of objects with the keys `image` (file name inside
    `images`), `text` and `label` (yes or no). An item's key is its position in the file, by which the
    official script joins answers and labels. Its id is `question_id` where all lines have one. A line may
    also hold the messages before its question (`messages`, see `earlier`), with images of the same folder.

    Raises:
        InputError: The file is missing, malformed or empty; names the file and the line.
    """
    path = os.fspath(path)
    items = []
    records = benchmark_files.read_records(path, "questions file ")
    for number, (line, record) in enumerate(records, start=1):
        source = f"{path}:{line}"
        _check(record, source)
        image = picture_file(record["image"], Path(images), source, allow_urls)
        item = question_item(record, image, split, number, source)
        if "messages" in record:
            item = replace(item, earlier=read_earlier(record["messages"], Path(images), source, allow_urls))
        items.append(item)
    if not items:
        raise InputError(f"questions file {path} holds no questions")
    if all("question_id" in record for _, record in records):
        pairs = zip(items, records, strict=True)
        items = [replace(item, id=_question_id(record, item.source)) for item, (_, record) in pairs]
    return items


def question_item(
    record: Mapping[str, Any], image: Path | None, split: str, number: int, source: str
) -> Item:
    """The item of a question in the official format (`read_questions`), the `number`-th of its split."""
    _check(record, source)
    label = record["label"].lower().strip()
    return Item(f"{split}/{number}", split, image, record["text"], label, source, reference=label)


def _question_id(record: Mapping[str, Any], source: str) -> str:
    return str(benchmark_files.require_field(record, "question_id", (int, str), source))


def _check(record: Any, source: str) -> None:
    if not isinstance(record, dict):
        raise InputError(
            f"{source}: expected an object with image, text and label, got {type(record).__name__}"
        )
    for key in ("image", "text", "label"):
        benchmark_files.require_field(record, key, str, source)
    if IMAGE_TOKEN in record["text"]:
        raise InputError(f"{source}: {IMAGE_TOKEN} cannot be part of a question, got {record['text']!r}")
    if record["label"].lower().strip() not in LABELS:
        raise InputError(f"{source}: label must be yes or no, got {record['label']!r}")


def _describe_file(path: Path) -> dict[str, str]:
    digest = benchmark_files.sha256(path)
    return {"file": path.name, "sha256": digest, "version": coco_version(digest)}
