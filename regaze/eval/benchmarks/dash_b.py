"""DASH-B: images that make models see what is not there (Augustin, Neuhaus and Hein, 2025, arXiv 2503.23573).

1,341 images without an object, found because detectors and models claim it, and 1,341 with it; as many of
either kind for each of 70 objects. The leaderboard is sorted by accuracy, which is (TNR + TPR) / 2.

Names of images with the object ("88.jpg") repeat between objects, so a question is told by object, name and
truth. The publisher's loader shows a black picture in place of one that cannot be opened; here that question
fails (see `max_errors`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regaze.bed.scenes import BED
from regaze.demo.phrases import with_article
from regaze.demo.shipped import DEMO, SceneSet
from regaze.demo.world import CATEGORIES, co_occurrence
from regaze.errors import InputError
from regaze.eval import files as benchmark_files
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import github_file
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import LABELS, REGAZE, YesNoScorer, read_anywhere
from regaze.reading import StrPath

REPOSITORY = "YanNeu/DASH-B"
COMMIT = "1538d01da15ef152dca8a8405da3f9444e26661d"
#: The publisher's number 4 of 20. The article is always "a" ("a orange").
QUESTION = "Can you see a {object} in this image? Please answer only with yes or no."
#: (list of images, folder of the images, truth), in the publisher's order.
LISTS = (("dash_benchmark_neg.json", "neg", "no"), ("dash_benchmark_pos.json", "pos", "yes"))
SHA256 = {
    "dash_benchmark_neg.json": "29d9afa611083f3becdc64e4c30a1783a6c8be9bf6d335a12b124c50ad2876ed",
    "dash_benchmark_pos.json": "fe261c2b9463e27034aea34368330ae4645cfd3bc0feca907240eb5160517829",
}
METRICS = ("accuracy", "tnr", "tpr", "harmonic_mean", "yes_ratio", "unreadable")
#: Of the demo: how strongly an absent object must be expected (`demo.world.CoOccurrence`), and the fewest
#: pairs of an object, as in the published set.
MISLEADING, FEWEST_PAIRS = 0.3, 3


@dataclass(frozen=True)
class TwoRatesScorer(Scorer):
    """Accuracy, TNR, TPR and their harmonic mean under one reading; an unreadable answer is wrong.

    References are "yes" and "no". "yes_ratio" and "unreadable" are ours, also beside the official rule.

    Attributes:
        reading: Reads the answers.
        stops: The script stops where TNR + TPR is 0, so that every figure of its own is undefined; else the
            harmonic mean is 0 there.
    """

    name: str
    version: str
    reading: YesNoScorer
    stops: bool = False
    metrics: tuple[str, ...] = METRICS
    accuracy_metric = "accuracy"

    def count(self, references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        return self.reading.count(references, answers)

    def readings(self, references: Sequence[str], answers: Sequence[str]) -> list[str]:
        return self.reading.readings(references, answers)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The figures, each [...], of summed counts [..., 2 labels, 3 readings]."""
        counts = sums.astype(np.float64)
        per_label, total = counts.sum(-1), counts.sum((-2, -1))
        tpr, tnr = ratio(counts[..., 0, 0], per_label[..., 0]), ratio(counts[..., 1, 1], per_label[..., 1])
        figures = {
            "accuracy": ratio(counts[..., 0, 0] + counts[..., 1, 1], total),
            "tnr": tnr,
            "tpr": tpr,
            "harmonic_mean": ratio(2 * tnr * tpr, tnr + tpr, math.nan if self.stops else 0.0),
        }
        if self.stops:
            defined = ~np.isnan(figures["harmonic_mean"])
            figures = {name: np.where(defined, figure, math.nan) for name, figure in figures.items()}
        figures["yes_ratio"] = ratio(counts[..., :, 0].sum(-1), total)
        figures["unreadable"] = ratio(counts[..., :, 2].sum(-1), total)
        return figures

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return (counts[:, 0, 0] + counts[:, 1, 1]).astype(bool)

    def details(self, sums: np.ndarray) -> dict[str, dict[str, int]]:
        return self.reading.details(sums)


_AS_RELEASED = YesNoScorer("dash-b", f"{REPOSITORY} 1538d01 eval_utils.py", read_anywhere)
OFFICIAL = TwoRatesScorer("official", _AS_RELEASED.version, _AS_RELEASED, stops=True)
OURS = TwoRatesScorer("regaze", REGAZE.version, REGAZE)


@dataclass(frozen=True)
class DashB(BaseBenchmark):
    """The questions, negatives before positives as published; an item's split is "dash-b"."""

    items: tuple[Item, ...]
    suffix: str = ""
    name: str = "dash-b"
    splits: ClassVar[tuple[str, ...]] = ("dash-b",)
    id_fields: ClassVar[tuple[str, ...]] = ("object_name", "img_id", "gt")
    about: ClassVar[About] = About(
        title="DASH-B",
        paper="Augustin, Neuhaus and Hein, 2025, arXiv 2503.23573",
        licence="none stated",
        images="found on the web by the publisher; on the hub, or in two archives that the repository names",
        home=f"https://github.com/{REPOSITORY}",
        hub=REPOSITORY,
        files=tuple(
            github_file(REPOSITORY, COMMIT, f"images/{name}", digest) for name, digest in SHA256.items()
        ),
    )

    @classmethod
    def load(
        cls, folder: StrPath, images: StrPath | None = None, *, suffix: str = "", limit: int | None = None
    ) -> DashB:
        """The two lists in `folder`, and the images in `images`, by default `folder` as in the repository.

        An image lies in `images` as neg/SOURCE/OBJECT/FILE, or pos/SOURCE/OBJECT/FILE.

        Args:
            limit: Number of pairs of an image without and one with the object.

        Raises:
            InputError: A list is missing or malformed, or an image stands in one twice.
        """
        folder, images = benchmark_files.folders_of(folder, images, "")
        root = benchmark_files.require_folder(images, "image folder")
        items = []
        for name, kind, truth in LISTS:
            path = benchmark_files.find_file(folder, name)
            for source, thing, file in _listed(path):
                image = root / kind / source / thing / file
                items.append(_item(thing, file, truth, image, str(path), QUESTION.format(object=thing)))
        return cls(_limit_pairs(items, limit), suffix)

    @classmethod
    def from_hub(cls, *, suffix: str = "", limit: int | None = None) -> DashB:
        """The publisher's copy on the hub, with the images."""
        items = []
        for row in hub.read_rows(cls.about.hub, split="test"):
            thing, name, truth, question = (
                benchmark_files.require_field(row.values, field, str, row.source)
                for field in ("object", "img_id", "answer", "question")
            )
            truth = truth.strip().lower()
            if truth not in LABELS:
                raise InputError(f"{row.source}: the answer must be yes or no, got {truth!r}")
            items.append(_item(thing, name, truth, row.image, row.source, question))
        return cls(_limit_pairs(items, limit), suffix)

    @classmethod
    def of_demo(cls, limit: int | None = None, *, suffix: str = "") -> DashB:
        """Scenes without an object that the rest of the scene makes expected, and as many with it.

        Of each object's absences those are taken that are expected most (at least `MISLEADING`), and as many
        of the scenes that show it, objects with fewer than `FEWEST_PAIRS` left out. The question is the form
        that the demo model was trained on, with the right article and without "Please answer ...".
        """
        return cls._of_scenes(DEMO, suffix, limit)

    @classmethod
    def of_bed(cls, limit: int | None = None, *, suffix: str = "") -> DashB:
        """As `of_demo`, about the bed's scenes."""
        return cls._of_scenes(BED, suffix, limit)

    @classmethod
    def _of_scenes(cls, shipped: SceneSet, suffix: str, limit: int | None) -> DashB:
        chosen: dict[str, list[tuple[str, Any]]] = {"no": [], "yes": []}
        shown = [(scene, {thing.category for thing in scene.objects}) for scene in shipped.scenes()]
        expected = [co_occurrence().expectation(sorted(present)) for _, present in shown]
        for place, thing in enumerate(CATEGORIES):
            absent = [
                (-strengths[place], number)
                for number, strengths in enumerate(expected)
                if strengths[place] >= MISLEADING
            ]
            present = [number for number, (_, things) in enumerate(shown) if thing in things]
            pairs = min(len(absent), len(present))
            if pairs >= FEWEST_PAIRS:
                chosen["no"] += [(thing, shown[number][0]) for _, number in sorted(absent)[:pairs]]
                chosen["yes"] += [(thing, shown[number][0]) for number in present[:pairs]]
        items = [
            _item(thing, s.name, truth, s.path, "", f"Can you see {with_article(thing)} in the image?")
            for truth, listed in chosen.items()
            for thing, s in listed
        ]
        return cls(_limit_pairs(items, limit), suffix)

    def scorers(self) -> Sequence[Scorer]:
        return OFFICIAL, OURS


def _item(thing: str, name: str, truth: str, image: Path | None, source: str, question: str) -> Item:
    key = f"{thing}/{name}/{truth}"
    return Item(key, "dash-b", image, question, truth, source, reference=truth, id=key)


def _limit_pairs(items: Sequence[Item], limit: int | None) -> tuple[Item, ...]:
    """The first `limit` negatives and positives."""
    checked = limit_items(items, None)
    if limit is None:
        return checked
    limit_items((), limit)
    return tuple(item for truth in ("no", "yes") for item in [i for i in checked if i.label == truth][:limit])


def _listed(path: Path) -> list[tuple[str, str, str]]:
    """(source, object, file) of a list {source: {object: [file, ...]}}, each a name without folders."""
    listed = []
    for source, objects in _mapping(benchmark_files.read_json(path), f"{path}").items():
        for thing in _mapping(objects, f"{path}: {source!r}"):
            where = f"{path}: {source!r}"
            for file in benchmark_files.require_texts(objects, thing, where):
                if any(part in ("", ".", "..") or set(part) & {"/", "\\"} for part in (source, thing, file)):
                    raise InputError(f"{where}: {thing!r}, {file!r} are no plain names")
                listed.append((source, thing, file))
    if not listed:
        raise InputError(f"{path} lists no images")
    return listed


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object with names, got {type(value).__name__}")
    return value
