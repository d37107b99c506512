"""BEAF: answers before and after an object is taken away (Ye-Bin et al., ECCV 2024, arXiv 2407.13442).

POPE's question on 500 photographs and on copies from which one object was painted out. The figures are
explained in `regaze.eval.benchmarks.beaf.scorers`.

The repository published two versions of the question file under one name: `v0` with 26,118 questions, and
`v1` (October 2024) with 26,064. Its script knows the numbers of v0 only, and stops with any others.

`official`
    The released script with its defects: an unreadable answer takes the value of the answer before it. Only
    for the whole of v0.
`official-mended`
    Its words (yes anywhere, else no anywhere) on any number of questions; an unreadable answer is wrong, and
    differs from a readable one.
`regaze`
    The same with our reading of yes and no.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from regaze.bed.scenes import BED
from regaze.demo.shipped import DEMO, SceneSet
from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.beaf.scorers import (
    ASSERTED,
    MENDED,
    OFFICIAL,
    REGAZE,
    BeafReference,
    count_pairs,
)
from regaze.eval.benchmarks.common.base import IMAGE_TOKEN, About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import github_file
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.common.yes_no import LABELS
from regaze.reading import StrPath

FILE = "beaf_qna.json"
#: Version -> number of its questions.
VERSIONS = {"v0": ASSERTED[0], "v1": 26_064}


@dataclass(frozen=True)
class Beaf(BaseBenchmark):
    """The questions about originals and copies.

    The bootstrap draws an original with all its copies.

    Attributes:
        version: v0 or v1 by the number of questions in the file, "" for any other number.
    """

    items: tuple[Item, ...]
    suffix: str = ""
    name: str = "beaf"
    version: str = ""
    about: ClassVar[About] = About(
        title="BEAF",
        paper="Ye-Bin et al., ECCV 2024, arXiv 2407.13442",
        licence="none stated",
        images="COCO val2014 (Flickr photographs, a licence each) and edited copies, on Google Drive",
        home="https://github.com/postech-ami/BEAF",
        files=(
            github_file(
                "postech-ami/BEAF",
                "1975f333c5388caf2704b71a6a3ed9da284536d9",
                FILE,
                "150969ea7ee182ea87ff1122b6f4dd1722fc77e868f16fdc4e2fe9fd2539360d",
            ),
        ),
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        version: str = "",
        suffix: str = "",
        limit: int | None = None,
    ) -> Beaf:
        """beaf_qna.json (or beaf_qna_v0.json ...) in `folder`, images in `images` (`folder`/images).

        Args:
            version: v0 or v1: refuse a file with another number of questions; "" for any file.
            limit: Number of questions; an original stays with all its copies.

        Raises:
            InputError: The file is missing or malformed, a copy asks what its original does not, or the
            number of
                questions is not that of `version`.
        """
        if version not in ("", *VERSIONS):
            raise InputError(f"BEAF has the versions {', '.join(VERSIONS)}, not {version!r}")
        folder, image_folder = files.folders_of(folder, images, "images")
        of_version = [f"beaf_qna_{name}.json" for name in ([version] if version else VERSIONS)]
        path = files.find_file(folder, FILE, *of_version)
        items = [_item(record, image_folder, f"{path}:{line}") for line, record in files.read_records(path)]
        _require_originals(items)
        if version and len(items) != VERSIONS[version]:
            raise InputError(f"{path} has {len(items)} questions, BEAF {version} {VERSIONS[version]}")
        found = next((name for name, count in VERSIONS.items() if count == len(items)), "")
        return cls(_limit_scenes(items, limit), suffix, version=found)

    @classmethod
    def of_demo(cls, limit: int | None = None, *, suffix: str = "", redrawn: bool = False) -> Beaf:
        """The demo's scenes, and copies without one of their objects.

        Args:
            redrawn: The copies are drawn without the object, in place of painting it out.
        """
        return cls._of_scenes(DEMO, redrawn, suffix, limit)

    @classmethod
    def of_bed(cls, limit: int | None = None, *, suffix: str = "") -> Beaf:
        """The bed's scenes, and copies drawn without one of their objects."""
        return cls._of_scenes(BED, True, suffix, limit)

    @classmethod
    def _of_scenes(cls, shipped: SceneSet, redrawn: bool, suffix: str, limit: int | None) -> Beaf:
        from regaze.eval.benchmarks.beaf import demo

        items: list[Item] = []
        for asked in demo.questions(shipped, redrawn):
            if limit is not None and len(items) >= limit:
                break
            for image, reference in asked:
                number = str(len(items))
                question, label = reference.question, reference.label
                items.append(Item(number, shipped.name, image, question, label, "", reference, id=number))
        return cls(_limit_scenes(items, limit), suffix)

    def scorers(self) -> Sequence[Scorer]:
        references = [item.reference for item in self.items]
        whole = (len(references), count_pairs(references)) == ASSERTED
        return (OFFICIAL, MENDED, REGAZE) if whole else (MENDED, REGAZE)

    def cluster(self, item: Item) -> str:
        """The original image."""
        scene: str = item.reference.scene
        return scene

    def describe(self) -> dict[str, Any]:
        """As `BaseBenchmark.describe`, with the version."""
        return {**super().describe(), "version": self.version or "neither v0 nor v1"}


def _item(record: Any, images: Path, source: str) -> Item:
    number = files.require_field(record, "id", int, source)
    image = files.require_field(record, "image", str, source)
    question = files.require_field(record, "question", str, source)
    label = files.require_field(record, "gt", str, source).lower().strip()
    original = files.require_field(record, "orig_img", bool, source)
    removed = files.require_field(record, "removed_q", bool, source)
    if label not in LABELS or IMAGE_TOKEN in question:
        raise InputError(
            f"{source}: expected gt yes or no and a question without {IMAGE_TOKEN}, got {record}"
        )
    stem = Path(image).stem
    if not original:
        copy = re.fullmatch(r"(.+)_\d+", stem)
        if copy is None:
            raise InputError(f"{source}: a copy is named like its original with _00 and so on, got {image!r}")
        stem = copy[1]
    reference = BeafReference(stem, question, label, original, removed)
    return Item(str(number), "all", images / image, question, label, source, reference, id=str(number))


def _require_originals(items: Sequence[Item]) -> None:
    """Raise InputError for a question on a copy that is not asked of its original."""
    asked = {(r.scene, r.question) for r in (item.reference for item in items) if r.original}
    for item in items:
        if (item.reference.scene, item.reference.question) not in asked:
            raise InputError(
                f"{item.source}: its original {item.reference.scene} is not asked {item.question!r}"
            )


def _limit_scenes(items: Sequence[Item], limit: int | None) -> tuple[Item, ...]:
    return limit_items(items, limit, {item.key: item.reference.scene for item in items})
