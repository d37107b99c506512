"""POPE: is there an object in the image, yes or no (Li et al., EMNLP 2023, arXiv 2305.10355).

Half of the questions name an object that is not there, drawn at random, among the popular ones, or among
those that keep company with what is there (adversarial): three splits. The scoring rules are in `yes_no`.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from regaze.errors import InputError
from regaze.eval import files as reading
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import IMAGE_TOKEN, About, Item, Scored, first
from regaze.eval.benchmarks.common.download import Remote, github
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.common.yes_no import LABELS, SCORERS

SPLITS = ("random", "popular", "adversarial")
VERSIONS = ("head", "9b54106", "e3e3926", "7ef3026")
#: Data set -> how its files are called.
FILES = {
    "coco": "coco_pope_{split}.json",
    "aokvqa": "aokvqa_pope_seem_{split}.json",
    "gqa": "gqa_pope_seem_{split}.json",
}
#: what LLaVA's protocol appends; without it models answer in sentences, which `harness` cannot read
SUFFIX = "\nAnswer the question using a single word or phrase."

_HEAD = "08d957b917e5a378a2f99d35b6293c536a66298b"
_COMMITS = {
    "head": _HEAD,
    "9b54106": "9b54106",
    "e3e3926": "e3e39262c85a6a83f26cf5094022a782cb0df58d",
    "7ef3026": "7ef3026faa9a89ed11fd508385fad652fdc6349f",
}
#: (version, split) -> SHA-256 of the COCO file; that of 9b54106 is not known.
_COCO = {
    ("head", "random"): "ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994",
    ("head", "popular"): "72c1a8ad45d0c13514f5f22598261df41d3b533854d29682e924db50ed8aa753",
    ("head", "adversarial"): "420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8",
    ("e3e3926", "random"): "c16b65d2df6d70bb0814c8a4375833d39cdb09928fd936d3fc546491efa37f35",
    ("e3e3926", "popular"): "5b16653023bf4f64d57eb0d168259de6627f5cde7538b85ebed3cc33034aa6cc",
    ("e3e3926", "adversarial"): "1d8f0906a9b50c05640f6f23abfac97523be2a1bed28f7eadc63b811699b2d26",
    ("7ef3026", "random"): "cb8dec967727fbee4b9cfadf9ba1ea9968515b12063efd313d0cf8b2b4230c86",
    ("7ef3026", "popular"): "eafca6ceff32c7bbb5b2845a00c6828ec8cbaf5e04f890d6902dc46b92f96076",
    ("7ef3026", "adversarial"): "412efc6fe25eb2604f2386d536bcf713dc88327cb20c36489b1f689f89617d04",
}
#: (data set, split) -> SHA-256.
_SEEM = {
    ("aokvqa", "random"): "f06eecde6d6ef4a00b95a7bbb510490708a09a6a67d952b59b8bdd33ac2c7200",
    ("aokvqa", "popular"): "2ae5bedee3450cda52f9b033942c7b04a3917a86a110e859a66c1e41934c6ffd",
    ("aokvqa", "adversarial"): "2ddd3bdfa0df7a77a2cb1765ed06ac5ed190b5a093aa405b96986e862e8cdac1",
    ("gqa", "random"): "6ce488eade3770185034939fabfe742fa32ed369011c8d9c3ac77bc0c85abd94",
    ("gqa", "popular"): "dd03f06a458dd216e83233160fbf6628af9c63c84b11e99599f4fc0304b3361d",
    ("gqa", "adversarial"): "74e01b41d8308e2392e3b8d961167496ff3901c01100265d931a7a392f138a7a",
}


def _published() -> tuple[Remote, ...]:
    """Every published questions file, the COCO ones in a folder per version."""
    files = []
    for version, commit in _COMMITS.items():
        for split in SPLITS:
            name = FILES["coco"].format(split=split)
            digest = _COCO.get((version, split))
            files.append(github("AoiDragon/POPE", commit, f"output/coco/{name}", digest, f"{version}/{name}"))
    for (dataset, split), digest in _SEEM.items():
        name = FILES[dataset].format(split=split)
        files.append(github("AoiDragon/POPE", _HEAD, f"output/seem/{dataset}/{name}", digest))
    return tuple(files)


@dataclass(frozen=True)
class Pope(Scored):
    """A set of POPE questions, from files in the official format.

    `files` maps a split's name to its questions file: JSON lines (or one JSON array) of objects with the keys
    `image` (file name inside `images`), `text`, `label` (yes or no) and, where given, `question_id`. `suffix`
    is appended to every question; LLaVA's protocol is "\\nAnswer the question using a single word or phrase."
    `limit` keeps the first questions of each split.

    Raises:
        InputError: a file or the folder is missing, a line is malformed (named by file and line), a question
            or the suffix holds the image token, nothing is left.
    """

    files: Mapping[str, Path]
    images: Path
    suffix: str = SUFFIX
    limit: int | None = None
    name: str = "pope"
    items: tuple[Item, ...] = field(init=False, repr=False)
    about: ClassVar[About] = About(
        title="POPE",
        paper="Li et al., EMNLP 2023, arXiv 2305.10355",
        licence="MIT",
        images="COCO val2014 (Flickr photographs, a licence each); GQA: Visual Genome",
        home="https://github.com/AoiDragon/POPE",
        hub="lmms-lab-encoder/POPE",
        files=_published(),
    )

    def __post_init__(self) -> None:
        if IMAGE_TOKEN in self.suffix:
            raise InputError(f"suffix {self.suffix!r}: {IMAGE_TOKEN} cannot be part of a question")
        first((), self.limit)
        reading.need_folder(self.images, "image folder")
        items = [
            item for split, path in self.files.items() for item in load_questions(path, self.images, split)
        ]
        object.__setattr__(self, "items", first(items, self.limit))

    @classmethod
    def load(
        cls,
        folder: Path,
        images: Path | None = None,
        *,
        dataset: str = "coco",
        version: str = "head",
        splits: Sequence[str] = SPLITS,
        **options: Any,
    ) -> Pope:
        """The published files of `dataset` in `folder`, or (COCO) in the version's folder in it.

        Args:
            images: folder of the photographs; without it `folder`/images.
            dataset: coco, aokvqa or gqa. version: of the COCO files (VERSIONS); the others have one.

        Raises:
            InputError: an unknown data set, version or split, and all that the constructor refuses.
        """
        if dataset not in FILES or version not in VERSIONS or not set(splits) <= set(SPLITS):
            raise InputError(
                f"POPE has the data sets {', '.join(FILES)}, versions {', '.join(VERSIONS)} and splits "
                f"{', '.join(SPLITS)}; got {dataset!r}, {version!r}, {', '.join(splits)}"
            )
        own = folder / version
        place = own if dataset == "coco" and own.is_dir() else folder
        paths = {split: reading.find_file(place, FILES[dataset].format(split=split)) for split in splits}
        return cls(paths, images or folder / "images", **options)

    @classmethod
    def of_demo(cls, limit: int | None = None, splits: Sequence[str] = SPLITS, **options: Any) -> Pope:
        """The shipped scenes' questions."""
        from regaze import demo

        return cls(
            {split: demo.questions_file(split) for split in splits}, demo.IMAGE_DIR, limit=limit, **options
        )

    def scorers(self) -> Sequence[Scorer]:
        return SCORERS

    def groups(self) -> dict[str, list[int]]:
        """Per split in the order of the files, and "all" when there are several."""
        groups = super().groups()
        return {split: groups[split] for split in (*self.files, "all") if split in groups}

    def describe(self) -> dict[str, Any]:
        """Name, files with their hashes and versions, suffix and limit."""
        hashes = {split: reading.sha256(path) for split, path in self.files.items()}
        known = {digest: version for (version, _), digest in _COCO.items()}
        described = {
            split: {
                "file": path.name,
                "sha256": hashes[split],
                "version": known.get(hashes[split], "unknown"),
            }
            for split, path in self.files.items()
        }
        return {**super().describe(), "files": described, "limit": self.limit}


@dataclass(frozen=True)
class PopeItems(Scored):
    """POPE questions that come from elsewhere than its files: the hub, POPEv2, LLaVA's merged file."""

    items: tuple[Item, ...]
    suffix: str = SUFFIX
    name: str = "pope"
    about: ClassVar[About] = Pope.about

    @classmethod
    def merged(cls, path: Path, images: Path, *, limit: int | None = None, **options: Any) -> PopeItems:
        """LLaVA's llava_pope_test.jsonl, whose lines name their split as `category`."""
        reading.need_folder(images, "image folder")
        return cls(first(load_questions(path, images, None), limit), **options)

    @classmethod
    def from_hub(cls, *, limit: int | None = None, **options: Any) -> PopeItems:
        """The hub's copy of the current COCO files, all three splits."""
        items: list[Item] = []
        for row in hub.rows(Pope.about.hub, split="test", limit=None):
            record = {"image": "-", "text": row.values.get("question"), "label": row.values.get("answer")}
            split = str(row.values.get("category", "all"))
            items.append(_item(record, row.image, split, len(items) + 1, row.source))
        return cls(first(items, limit), **options)

    def scorers(self) -> Sequence[Scorer]:
        return SCORERS


@dataclass(frozen=True)
class PopeV2(PopeItems):
    """POPEv2: the same question on a COCO train2017 image and on a copy with the object painted out.

    An image and its copy are drawn together when intervals are bootstrapped.
    """

    name: str = "popev2"
    about: ClassVar[About] = About(
        title="POPEv2",
        paper="published with POPE's repository, 2025",
        licence="MIT",
        images="COCO train2017 (Flickr photographs, a licence each) and edited copies of them",
        home="https://github.com/AoiDragon/POPE",
        files=(
            github(
                "AoiDragon/POPE",
                _HEAD,
                "POPEv2/dataset/annotations.json",
                "321d8dd41a7bd9be5f863c88f40bf50965b6e5f3345db42fe04fcb4c6ba9570e",
            ),
        ),
    )

    @classmethod
    def load(
        cls, folder: Path, images: Path | None = None, *, limit: int | None = None, **options: Any
    ) -> PopeV2:
        """annotations.json (or popev2_annotations.json) in `folder`; image names are below `images`."""
        path = reading.find_file(folder, "annotations.json", "popev2_annotations.json")
        root = reading.need_folder(images or folder, "image folder")
        items = []
        for number, (line, record) in enumerate(reading.read_records(path), start=1):
            source = f"{path}:{line}"
            name = reading.field(record, "image_name", str, source).lstrip("/")
            renamed = {"image": name, "text": record.get("query"), "label": record.get("label")}
            item = _item(renamed, root / name, "popev2", number, source)
            items.append(item)
        whole = {item.key: item.image.name for item in items if item.image is not None}
        return cls(first(items, limit, whole), **options)

    def cluster(self, item: Item) -> str:
        return item.image.name if item.image is not None else item.key


def load_questions(path: Path, images: Path, split: str | None) -> list[Item]:
    """Read and check one questions file. Raises InputError naming the file and the line.

    Questions are known by their place in the file, as the official script joins answers to labels; ids are
    not used. Without a split the `category` of each question is taken.
    """
    counts: dict[str, int] = {}
    items = []
    for line, record in reading.read_records(path, "questions file "):
        source = f"{path}:{line}"
        own = split or reading.field(record, "category", str, source)
        counts[own] = counts.get(own, 0) + 1
        _check(record, source)
        items.append(_item(record, images / record["image"], own, counts[own], source))
    if not items:
        raise InputError(f"questions file {path} holds no questions")
    return items


def _item(record: Mapping[str, Any], image: Path | None, split: str, number: int, source: str) -> Item:
    _check(record, source)
    label = record["label"].lower().strip()
    return Item(f"{split}/{number}", split, image, record["text"], label, source, reference=label)


def _check(record: Any, source: str) -> None:
    if not isinstance(record, dict):
        raise InputError(
            f"{source}: expected an object with image, text and label, got {type(record).__name__}"
        )
    for key in ("image", "text", "label"):
        reading.field(record, key, str, source)
    if IMAGE_TOKEN in record["text"]:
        raise InputError(f"{source}: {IMAGE_TOKEN} cannot be part of a question, got {record['text']!r}")
    if record["label"].lower().strip() not in LABELS:
        raise InputError(f"{source}: label must be yes or no, got {record['label']!r}")
