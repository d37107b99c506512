"""AMBER: descriptions and yes/no questions on annotated photographs (Wang et al., 2023, arXiv 2311.07397).

The official script scores both parts at once. Of descriptions: CHAIR (share of nouns that are not in the
image), cover (share of objects that are named), hal (share of descriptions with a wrong noun), cog (share of
annotated hallucinations that are named). Of answers: accuracy, and precision, recall and F1 of "No", which is
the positive class; anything but exactly "Yes" or "No" is wrong. The AMBER score of the paper is
(100 - CHAIR + F1) / 2.

`official`
    All figures in percent, rounded to one decimal as printed, F1 from the rounded precision and recall.
`lmms-eval`
    Descriptions only, unrounded; its rule adds 0.001 to the denominators once per description.
`vlmevalkit`
    Answers only: accuracy per kind by the words yes and no, and the mean of the kinds.
`regaze`
    Answers only, as official but read by `yes_no_reading`; the share of unreadable answers is reported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from regaze.bed.scenes import BED
from regaze.demo.shipped import DEMO, SceneSet
from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.amber.scorers import (
    TASKS,
    AmberScorer,
    LmmsEvalScorer,
    Reference,
    VlmEvalKitScorer,
    YesNoReference,
    read_own,
)
from regaze.eval.benchmarks.amber.similarity import (
    EXACT,
    SPACY_MODEL,
    Similarity,
    read_similarity,
    spacy_similarity,
)
from regaze.eval.benchmarks.amber.words import AnnotatedObjects, NounMatcher
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import github_file
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.reading import StrPath, read_text

SUFFIX = "\nAnswer the question using a single word or phrase."
#: Type of an annotation -> kind of the question.
_KIND_OF_TYPE = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",  # the name of relations that do not hold
}
_KINDS_OF_TASK = {"de": ("existence",), "da": ("state", "number", "action"), "dr": ("relation",)}


@dataclass(frozen=True)
class Amber(BaseBenchmark):
    """AMBER's questions of one evaluation type."""

    items: tuple[Item, ...]
    task: str = "a"
    matcher: NounMatcher | None = None
    suffix: str = SUFFIX
    name: str = "amber"
    splits: ClassVar[tuple[str, ...]] = tuple(TASKS)
    image_prefix: ClassVar[str] = r"AMBER_"
    about: ClassVar[About] = About(
        title="AMBER",
        paper="Wang et al., 2023, arXiv 2311.07397",
        licence="Apache-2.0",
        images="1,004 photographs from MS-COCO and Unsplash as published on Google Drive; licences unstated",
        home="https://github.com/junyangwang0410/AMBER",
        hub="Kyunnilee/amber_g",
        files=tuple(
            github_file(
                "junyangwang0410/AMBER",
                "534babf6bbfcce2e735c26289dedfb21cef3c939",
                f"data/{path}",
                digest,
                path,
            )
            for path, digest in {
                "query/query_all.json": "127680ae61f7d4a92d2f7f07a8deaec07f0689b194d2c7c0f41ead7bd2c5bcf5",
                "annotations.json": "db22a436c4836fbb295e60b4e80d519573077579fb7032f01b193c1bd022b797",
                "relation.json": "c4c1491e9bbc3209abc1888c12a1bf8413bdbab8a0d8be04b990a2e7680cf23e",
                "safe_words.txt": "f92cf1123f4578a2630832fac3e6ac4de36212ea55859d3bed4fd233723f4043",
            }.items()
        ),
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        task: str = "a",
        similarity: Similarity | StrPath = SPACY_MODEL,
        ids: Sequence[int] | None = None,
        limit: int | None = None,
        suffix: str = SUFFIX,
    ) -> Amber:
        """The official files in `folder`, photographs as AMBER_<n>.jpg in `images` (`folder`/image).

        Args:
            task: The official evaluation type: a, g, d, de, da or dr.
            similarity: A table of word similarities, a file with one, or the name of an installed spaCy
                model; only for descriptions (a, g).
            ids: Only these question ids.
            suffix: Appended to yes/no questions, never to "Describe this image."

        Raises:
            InputError: Unknown task, a missing or malformed file, or no word similarities.
        """
        folder, image_folder = files.folders_of(folder, images, "image")
        _require_task(task)
        matcher = _load_matcher(folder, similarity) if task in ("a", "g") else None
        path = files.find_file(folder, "query/query_all.json", "query_all.json")
        annotations = files.find_file(folder, "annotations.json")
        references = _read_annotations(annotations, matcher)
        items = []
        for line, record in files.read_records(path):
            source = f"{path}:{line}"
            number = files.require_field(record, "id", int, source)
            if not 1 <= number <= len(references):
                raise InputError(
                    f"{source}: id {number}, but {annotations} has {len(references)} annotations"
                )
            reference = references[number - 1]
            if _belongs(reference, task) and (ids is None or number in ids):
                image = image_folder / files.require_field(record, "image", str, source)
                query = files.require_field(record, "query", str, source)
                items.append(_item(number, image, query, reference, source))
        return cls(limit_items(items, limit), task, matcher, suffix)

    @classmethod
    def of_demo(cls, limit: int | None = None, *, task: str = "g", suffix: str = SUFFIX) -> Amber:
        """Descriptions of the demo's scenes, or questions about them (`demo`).

        Args:
            task: The evaluation type, as of `load`.
        """
        return cls._of_scenes(DEMO, task, suffix, limit)

    @classmethod
    def of_bed(cls, limit: int | None = None, *, task: str = "g", suffix: str = "") -> Amber:
        """As `of_demo`, about the bed's scenes; its descriptions have up to 192 tokens."""
        bench = cls._of_scenes(BED, task, suffix, limit)
        long = (
            replace(item, max_new_tokens=192) if isinstance(item.reference, AnnotatedObjects) else item
            for item in bench.items
        )
        return replace(bench, items=tuple(long))

    @classmethod
    def _of_scenes(cls, shipped: SceneSet, task: str, suffix: str, limit: int | None) -> Amber:
        from regaze.eval.benchmarks.amber import demo

        _require_task(task)
        asked = [row for row in demo.questions(shipped.scenes()) if _belongs(row[2], task)]
        items = [_item(number, *row) for number, row in enumerate(asked, start=1)]
        matcher = demo.matcher() if task in ("a", "g") else None
        return cls(limit_items(items, limit), task, matcher, suffix)

    def prompt(self, item: Item) -> str:
        return item.question + (self.suffix if isinstance(item.reference, YesNoReference) else "")

    def scorers(self) -> Sequence[Scorer]:
        vectors = f", similarity: {self.matcher.similar.name}" if self.matcher else ""
        version = f"junyangwang0410/AMBER 534babf inference.py{vectors}"
        official = AmberScorer("official", version, self.matcher, self.task)
        if self.task == "a":
            return (official,)
        if self.matcher is not None:
            return (official, LmmsEvalScorer(self.matcher))
        return (official, VlmEvalKitScorer(), AmberScorer("regaze", "2", None, self.task, read_own))

    def groups(self) -> dict[str, list[int]]:
        """One group: the official figures are over all questions of the evaluation type."""
        return {self.task: list(range(len(self.items)))}

    def cluster(self, item: Item) -> str:
        return item.image.name if item.image is not None else item.key


def _require_task(task: str) -> None:
    if task not in TASKS:
        raise InputError(f"AMBER has the tasks {', '.join(TASKS)}, not {task!r}")


def _load_matcher(folder: Path, similarity: Similarity | StrPath) -> NounMatcher:
    path = files.find_file(folder, "relation.json")
    associations = files.read_json(path)
    if not isinstance(associations, dict) or not all(isinstance(w, list) for w in associations.values()):
        raise InputError(f"{path}: expected an object of words, each with a list of associated words")
    for word in associations:
        files.require_texts(associations, word, str(path))
    safe = frozenset(read_text(files.find_file(folder, "safe_words.txt")).split("\n"))
    if isinstance(similarity, str) and not similarity.endswith((".json", ".json.gz")):
        vocabulary = NounMatcher(associations, safe, EXACT).vocabulary()
        similarity = spacy_similarity(vocabulary, similarity)
    elif isinstance(similarity, str | os.PathLike):
        similarity = read_similarity(similarity)
    return NounMatcher(associations, safe, similarity)


def _read_annotations(path: Path, matcher: NounMatcher | None) -> list[Reference]:
    """The annotations in the order of their ids."""
    references: list[Reference] = []
    for number, (line, record) in enumerate(files.read_records(path), start=1):
        source = f"{path}:{line}"
        kind = files.require_field(record, "type", str, source)
        if files.require_field(record, "id", int, source) != number:
            raise InputError(f"{source}: id {record['id']} at place {number}; ids must count from 1")
        if kind == "generative":
            lists = [tuple(files.require_texts(record, key, source)) for key in ("truth", "hallu")]
            unknown = [
                word for words in lists for word in words if matcher and word not in matcher.associations
            ]
            if unknown:
                raise InputError(f"{source}: {unknown[0]!r} is not in relation.json")
            references.append(AnnotatedObjects(*lists))
        elif kind in _KIND_OF_TYPE and record.get("truth") in ("yes", "no"):
            references.append(YesNoReference(_KIND_OF_TYPE[kind], record["truth"] == "no"))
        else:
            raise InputError(f"{source}: unknown type {kind!r}, or 'truth' is not yes or no")
    return references


def _belongs(reference: Reference, task: str) -> bool:
    """Whether an item is part of an evaluation type."""
    if isinstance(reference, AnnotatedObjects):
        return task in ("a", "g")
    return task in ("a", "d") or reference.kind in _KINDS_OF_TASK.get(task, ())


def _item(number: int, image: Path, query: str, reference: Reference, source: str = "") -> Item:
    if isinstance(reference, AnnotatedObjects):
        return Item(str(number), "generative", image, query, "", source, reference, id=str(number))
    label = "no" if reference.negative else "yes"
    split = f"discriminative-{reference.kind}"
    return Item(str(number), split, image, query, label, source, reference, id=str(number))
