"""RePOPE: POPE's questions with labels gone over by hand (Neuhaus and Hein, 2025, arXiv 2504.15707).

9.3 % of POPE's yes labels are wrong, and more are ambiguous. A model is asked POPE's questions once, and its
answers are scored by both label sets (`label_sets`).

RePOPE's labels belong to questions by image and text. Its ids are POPE's current ones, and mean other
questions in the 2,910 random ones of version e3e3926.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from regaze.bed.scenes import BED
from regaze.demo.shipped import DEMO, SceneSet
from regaze.errors import InputError
from regaze.eval import files as benchmark_files
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import github_file
from regaze.eval.benchmarks.common.ids import image_stem
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.common.yes_no import LABELS
from regaze.eval.benchmarks.pope.benchmark import Pope, question_item, read_questions
from regaze.eval.benchmarks.pope.demo_labels import spoil_labels
from regaze.eval.benchmarks.pope.label_sets import CORRECTED_SCORERS, LABEL_SETS_SCORERS, Labels
from regaze.eval.benchmarks.pope.published import SPLITS, question_files
from regaze.reading import StrPath

#: Pattern of the names of the files with corrected labels.
FILE = "coco_repope_{split}.json"
COMMIT = "bcf22e5690d587cce34e1728af3efdcfaf747d29"
SHA256 = {
    "random": "f464fcaf60b24ce2f280cf33f122e000dbdd35c8e88f77c4141c9c2cba864611",
    "popular": "57832b055bae5fd6176278a4f104c98ddd84811f7d26dfcb93d481f6c9da09a5",
    "adversarial": "8c346dbb060bf422ff92e769fa68e5ab3e8a777cb28a26e973387441e05c9ccf",
}
#: The labels' copy on the hub, without POPE's own labels.
HUB = "MM-Hallu/RePOPE"

#: (image, text) of a question, as files spell them alike.
Key = tuple[str, str]


@dataclass(frozen=True)
class RePope(BaseBenchmark):
    """POPE's questions with both labels; an item's `label` is POPE's, its `reference` is `Labels`.

    Attributes:
        missing: {split: number of RePOPE's questions that are not among POPE's}.
        pope: POPE as it was read, for its description.
        label_files: {split: file of the corrected labels} where they were read from files.
        limit: Number of questions per split that POPE was cut to.
        is_demo: Whether the labels are those of `demo_labels`, of the demo's scenes or of the bed's.
        corrected_only: Only the questions with a corrected label are asked, and scored by these labels alone.
    """

    items: tuple[Item, ...]
    suffix: str = ""
    name: str = "repope"
    missing: Mapping[str, int] = field(default_factory=dict, repr=False)
    pope: Pope | None = field(default=None, repr=False)
    label_files: Mapping[str, Path] = field(default_factory=dict, repr=False)
    limit: int | None = None
    is_demo: bool = False
    corrected_only: bool = False
    splits: ClassVar[tuple[str, ...]] = SPLITS
    about: ClassVar[About] = About(
        title="RePOPE",
        paper="Neuhaus and Hein, 2025, arXiv 2504.15707",
        licence="none stated by the publisher (a copy on the hub says MIT); POPE's questions: MIT",
        images="COCO val2014 (Flickr photographs, a licence each)",
        home="https://github.com/YanNeu/RePOPE",
        hub=HUB,
        files=(
            *(
                github_file("YanNeu/RePOPE", COMMIT, f"annotations/{FILE.format(split=split)}", digest)
                for split, digest in SHA256.items()
            ),
            *(file for file in question_files() if file.path.startswith(("head/", "e3e3926/"))),
        ),
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        pope: StrPath | None = None,
        version: str = "head",
        splits: Sequence[str] = SPLITS,
        suffix: str = "",
        limit: int | None = None,
        corrected_only: bool = False,
    ) -> RePope:
        """The published labels in `folder`, and POPE's COCO files there or in `pope`, as `Pope.load`.

        Args:
            images: Folder of the images; that of `Pope.load` by default.
            version: Version of POPE's files. Answers to any of them can be scored; 7ef3026 has other images.
            corrected_only: Leave out the questions that RePOPE dropped, and with them the figures under
                POPE's labels: of POPE's head, 8,185 of 9,000 are left.

        Raises:
            InputError: As `Pope.load`; a question that the labels name twice; labels of other questions.
        """
        limit_items((), limit)
        try:
            questions = Pope.load(pope or folder, images, version=version, splits=splits)
        except InputError as error:
            if pope is not None:
                raise
            raise InputError(f"{error}; POPE's own files may be elsewhere: --bench pope=FOLDER") from error
        paths = {split: benchmark_files.find_file(folder, FILE.format(split=split)) for split in splits}
        labels = {split: read_labels(path, split) for split, path in paths.items()}
        items, missing = join_labels(questions.items, labels)
        for split, path in paths.items():
            _require_most(path, len(labels[split]), missing[split])
        return cls(
            _limited(items, limit, corrected_only),
            suffix,
            missing=missing,
            pope=questions,
            label_files=paths,
            limit=limit,
            corrected_only=corrected_only,
        )

    @classmethod
    def of_demo(
        cls,
        limit: int | None = None,
        splits: Sequence[str] = SPLITS,
        *,
        suffix: str = "",
        corrected_only: bool = False,
    ) -> RePope:
        """POPE's questions about the demo's scenes, with wrong and missing labels (`demo_labels`)."""
        return cls._of_scenes(DEMO, Pope.of_demo(splits=splits), suffix, limit, corrected_only)

    @classmethod
    def of_bed(
        cls,
        limit: int | None = None,
        splits: Sequence[str] = SPLITS,
        *,
        suffix: str = "",
        corrected_only: bool = False,
    ) -> RePope:
        """As `of_demo`, about the bed's scenes."""
        return cls._of_scenes(BED, Pope.of_bed(splits=splits), suffix, limit, corrected_only)

    @classmethod
    def _of_scenes(
        cls, shipped: SceneSet, questions: Pope, suffix: str, limit: int | None, corrected_only: bool
    ) -> RePope:
        spoilt = spoil_labels(questions.items, shipped.scenes())
        return cls(
            _limited(spoilt, limit, corrected_only),
            suffix,
            missing=dict.fromkeys(questions.files, 0),
            pope=questions,
            limit=limit,
            is_demo=True,
            corrected_only=corrected_only,
        )

    @classmethod
    def from_hub(cls, *, suffix: str = "", limit: int | None = None, corrected_only: bool = False) -> RePope:
        """POPE's questions and images from its hub copy, and RePOPE's labels from theirs."""
        labels: dict[str, dict[Key, str]] = {}
        for row in hub.read_rows(HUB, split="train", images=False):
            named = {"image": row.values.get("image_id"), "text": row.values.get("question")}
            named["label"] = row.values.get("answer")
            split = benchmark_files.require_field(row.values, "category", str, row.source)
            _add_label(labels.setdefault(split, {}), question_item(named, None, split, 0, row.source), named)
        items, images = list[Item](), list[str]()
        for row in hub.read_rows(Pope.about.hub, split="test"):
            images.append(benchmark_files.require_field(row.values, "image_source", str, row.source))
            named = {"image": images[-1], "text": row.values.get("question")}
            named["label"] = row.values.get("answer")
            split = benchmark_files.require_field(row.values, "category", str, row.source)
            items.append(question_item(named, row.image, split, len(items) + 1, row.source))
        joined, missing = join_labels(items, labels, images)
        for split, given in labels.items():
            _require_most(f"{HUB}, {split}", len(given), missing[split])
        asked = _limited(joined, limit, corrected_only)
        return cls(asked, suffix, missing=missing, limit=limit, corrected_only=corrected_only)

    def scorers(self) -> Sequence[Scorer]:
        return CORRECTED_SCORERS if self.corrected_only else LABEL_SETS_SCORERS

    def right_answers(self, item: Item) -> tuple[str, ...]:
        """Both labels."""
        return tuple({item.reference.pope: None, item.reference.repope or item.reference.pope: None})

    def label_counts(self) -> dict[str, dict[str, int]]:
        """{split: how RePOPE's labels relate to POPE's}.

        "found" and "dropped" are the questions with and without a corrected label, "yes_to_no" and
        "no_to_yes" those whose label changed, "missing" what RePOPE has and these questions do not.
        """
        out: dict[str, dict[str, int]] = {}
        for item in self.items:
            names = ("found", "dropped", "yes_to_no", "no_to_yes")
            counts = out.setdefault(item.split, {**dict.fromkeys(names, 0), "missing": 0})
            pope, repope = item.reference.pope, item.reference.repope
            counts["dropped" if repope is None else "found"] += 1
            if repope is not None and pope != repope:
                counts[f"{pope}_to_{repope}"] += 1
            counts["missing"] = self.missing.get(item.split, 0)
        return out

    def notes(self) -> tuple[str, ...]:
        parts = []
        for split, counts in self.label_counts().items():
            missing = f" ({counts['missing']} more are not among these)" if counts["missing"] else ""
            parts.append(
                f"{split} {counts['found']} with a corrected label{missing}, {counts['dropped']} without, "
                f"{counts['yes_to_no']} changed from yes to no, {counts['no_to_yes']} from no to yes"
            )
        spoilt = "POPE's labels are spoilt on purpose here, and the corrected ones are the truth. "
        questions = f"{spoilt if self.is_demo else ''}Questions: {'; '.join(parts)}."
        if self.corrected_only:
            dropped = "The questions that RePOPE dropped are left out, so there are no figures of POPE's."
            return (questions, dropped)
        return (
            questions,
            "Figures that begin with POPE are of the same answers under POPE's labels; a shift is the figure "
            "under RePOPE's labels minus that under POPE's. A method's difference of a shift is the part of "
            "its gain that comes with the labels.",
        )

    def describe(self) -> dict[str, Any]:
        """As `BaseBenchmark.describe`, with POPE's files and the labels' and `label_counts`."""
        described = super().describe() | {"labels": self.label_counts(), "limit": self.limit}
        if self.pope is not None:
            described["files"] = self.pope.describe().get("files", {})
        if self.label_files:
            described["label_files"] = {
                split: {"file": path.name, "sha256": benchmark_files.sha256(path)}
                for split, path in self.label_files.items()
            }
        return described


def _limited(items: Sequence[Item], limit: int | None, corrected_only: bool) -> tuple[Item, ...]:
    """The first items per split, of all or of those with a corrected label."""
    return limit_items([i for i in items if not corrected_only or i.reference.repope is not None], limit)


def read_labels(path: StrPath, split: str) -> dict[Key, str]:
    """{(image, text): corrected label} of a file in POPE's format.

    Raises:
        InputError: As `read_questions`, or a question that occurs twice; names file and line.
    """
    labels: dict[Key, str] = {}
    for item in read_questions(path, "", split):
        _add_label(labels, item, {"image": item.image.name if item.image else ""})
    return labels


def join_labels(
    items: Iterable[Item], labels: Mapping[str, Mapping[Key, str]], images: Sequence[str] | None = None
) -> tuple[list[Item], dict[str, int]]:
    """POPE's items with `Labels`, and {split: number of labels whose question is not among them}.

    Args:
        labels: {split: {(image, text): label}}.
        images: Names of the items' images; by default those of their files.
    """
    found: dict[str, set[Key]] = {split: set() for split in labels}
    out = []
    for place, item in enumerate(items):
        name = images[place] if images is not None else item.image.name if item.image else ""
        key = question_key(name, item.question)
        corrected = labels.get(item.split, {}).get(key)
        if corrected is not None:
            found[item.split].add(key)
        out.append(replace(item, reference=Labels(item.label, corrected)))
    return out, {split: len(labels[split]) - len(found[split]) for split in labels}


def _add_label(labels: dict[Key, str], item: Item, named: Mapping[str, Any]) -> None:
    key = question_key(named["image"], item.question)
    if key in labels:
        raise InputError(f"{item.source}: a second label for {item.question!r} about {named['image']}")
    assert item.label in LABELS
    labels[key] = item.label


def question_key(image: str, text: str) -> Key:
    """What tells a question apart: image and text, without folders, endings and POPE's typing error."""
    words = " ".join(text.casefold().split()).replace("imange", "image")
    return image_stem(image, RePope.image_prefix), words


def _require_most(source: StrPath, count: int, missing: int) -> None:
    if 2 * missing > count:
        raise InputError(
            f"{source}: only {count - missing} of its {count} questions are among POPE's; RePOPE corrects "
            "the COCO files of the versions head, 9b54106 and e3e3926"
        )
