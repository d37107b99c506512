"""AMBER: descriptions and yes/no questions on annotated photographs (Wang et al., 2023, arXiv 2311.07397).

The official script scores both parts at once. Of descriptions: CHAIR (nouns that are not in the image), cover
(objects that are named), hal (descriptions with a wrong noun), cog (wrong nouns that people would expect
there). Of answers: accuracy, and precision, recall and F1 of "No", which is the positive class; anything but
exactly "Yes" or "No" is wrong. The AMBER score of the paper is (100 - CHAIR + F1) / 2.

`official`
    All figures in percent, rounded to one decimal as printed, F1 from the rounded precision and recall.
`lmms-eval`
    Descriptions only, unrounded; its rule adds 0.001 to the denominators once per description.
`vlmevalkit`
    Answers only: accuracy per kind by the words yes and no, and the mean of the kinds.
`regaze`
    Answers only, as official but read by their first word; what is unreadable is counted (`unreadable`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.amber.words import (
    EXACT,
    MODEL,
    AmberWords,
    Scene,
    Similarity,
    read_similarity,
    spacy_similarity,
)
from regaze.eval.benchmarks.chair.words import ClosedVocabulary
from regaze.eval.benchmarks.common.base import About, Item, Scored, first
from regaze.eval.benchmarks.common.download import github
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.yes_no import read_strictly, read_vlmevalkit

SUFFIX = "\nAnswer the question using a single word or phrase."
#: The official evaluation types: all, generative, discriminative, and the latter's three parts.
TASKS = ("a", "g", "d", "de", "da", "dr")
KINDS = ("existence", "state", "number", "action", "relation")
_TYPES = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",  # what the relations that do not hold are called
}
_OF_TASK = {"de": ("existence",), "da": ("state", "number", "action"), "dr": ("relation",)}
_GENERATIVE = ("chair", "cover", "hal", "cog")
_START = 0.001  # every denominator of the official script starts at this


@dataclass(frozen=True)
class Question:
    """A yes/no question's reference: its kind, and whether the answer is "no"."""

    kind: str
    negative: bool


_round = np.vectorize(lambda value: round(float(value), 1), otypes=[np.float64])


@dataclass(frozen=True)
class AmberScorer(Scorer):
    """The official rule; references are `Scene` (a description) or `Question`.

    Attributes:
        task: the official evaluation type, which says what is printed.
        read: what an answer counts as: "Yes", "No" or anything else.
    """

    shares = ()
    name: str
    version: str
    words: AmberWords | None
    task: str = "a"
    read: Callable[[str], str] = str

    @property
    def figures(self) -> tuple[str, ...]:  # type: ignore[override]
        """The figures that the official script prints for the task, under one name each."""
        asked = {
            "a": ("", "existence", "attribute", *KINDS[1:]),
            "d": ("", "existence", "attribute", *KINDS[1:]),
        }
        parts = {
            "de": ("existence",),
            "da": ("attribute", *KINDS[1:4]),
            "dr": ("relation",),
            "g": (),
            **asked,
        }
        of_answers = [
            f"{part}_{figure}".lstrip("_")
            for part in parts[self.task]
            for figure in ("accuracy", "precision", "recall", "f1")
        ]
        score = ("amber_score",) if self.task == "a" else ()
        described = _GENERATIVE if self.task in ("a", "g") else ()
        unreadable = ("unreadable",) if self.task != "g" and self.read is not str else ()
        return (*score, *described, *of_answers, *unreadable)

    def tally(self, references: Sequence[Scene | Question], answers: Sequence[str]) -> np.ndarray:
        """[n, 8 + 5 kinds x 6]: of descriptions, then of answers."""
        return np.stack([self._count(*pair) for pair in zip(references, answers, strict=True)])

    def _count(self, reference: Scene | Question, answer: str) -> np.ndarray:
        described, asked = np.zeros(8), np.zeros((len(KINDS), 6))
        if isinstance(reference, Scene):
            if self.words is None:
                raise InputError("AMBER's descriptions were loaded without the words to score them by")
            seen = self.words.read(reference, answer)
            described[:] = (
                *(len(seen.wrong), len(seen.nouns), sum(seen.covered), len(seen.covered)),
                *(sum(seen.claimed), len(seen.claimed), not seen.wrong, 1),
            )
        else:
            given = self.read(answer)
            right = given == ("No" if reference.negative else "Yes")
            asked[KINDS.index(reference.kind)] = (
                *(right, 1, reference.negative, given == "No"),
                *(given == "No" and reference.negative, given not in ("Yes", "No")),
            )
        return np.concatenate([described, asked.ravel()])

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        described, asked = sums[..., :8], sums[..., 8:].reshape(*sums.shape[:-1], len(KINDS), 6)
        every = dict(zip(_GENERATIVE, map(_round, _of_descriptions(described, _START)), strict=True))
        parts = {"": KINDS, "attribute": KINDS[1:4], **{kind: (kind,) for kind in KINDS}}
        for part, kinds in parts.items():
            counts = asked[..., [KINDS.index(kind) for kind in kinds], :].sum(-2)
            # The script adds up the attributes' denominators, but keeps one of its own for all questions.
            start = _START * (3 if part == "attribute" else 1)
            for figure, value in _of_answers(counts, start, 0.001 if part == "existence" else 0.0001).items():
                every[f"{part}_{figure}".lstrip("_")] = value
        every["amber_score"] = (100 - every["chair"] + every["f1"]) / 2
        every["unreadable"] = 100 * ratio(asked[..., 5].sum(-1), asked[..., 1].sum(-1))
        return {figure: every[figure] for figure in self.figures}

    def right(self, counts: np.ndarray) -> np.ndarray | None:
        """Descriptions without a wrong noun, or right answers; None where both are mixed."""
        asked = counts[:, 8:].reshape(len(counts), len(KINDS), 6)
        return {"a": None, "g": counts[:, 6] > 0}.get(self.task, asked[:, :, 0].sum(1) > 0)


def _of_descriptions(counts: np.ndarray, start: float | np.ndarray) -> tuple[np.ndarray, ...]:
    """CHAIR, cover, hal and cog in percent of summed counts [..., 8]."""
    wrong, nouns, covered, there, claimed, claims, clean, captions = np.moveaxis(counts, -1, 0)
    pairs = ((wrong, nouns), (covered, there), (clean, captions), (claimed, claims))
    chair, cover, clean, cog = (ratio(above, below + start) * 100 for above, below in pairs)
    return chair, cover, 100 - clean, cog


def _of_answers(counts: np.ndarray, start: float, beside_f1: float) -> dict[str, np.ndarray]:
    """Accuracy, precision, recall and F1 in percent, rounded, of summed counts [..., 6]."""
    right, total, negative, said_no, rightly_no, _ = np.moveaxis(counts, -1, 0)
    precision = _round(rightly_no / (said_no + start) * 100)
    recall = _round(rightly_no / (negative + start) * 100)
    f1 = 2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + beside_f1)
    accuracy = _round(right / (total + start) * 100)
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": _round(f1 * 100)}


@dataclass(frozen=True)
class DescriptionsLmmsEval(Scorer):
    """lmms-eval's amber_g: `Scene` references only."""

    shares = ()
    words: AmberWords
    name: str = "lmms-eval"
    version: str = "lmms-eval 75571cf amber_g"
    figures: tuple[str, ...] = _GENERATIVE

    def tally(self, references: Sequence[Scene], answers: Sequence[str]) -> np.ndarray:
        return AmberScorer("", "", self.words).tally(references, answers)[:, :8]

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(_GENERATIVE, _of_descriptions(sums, _START * sums[..., 7]), strict=True))


@dataclass(frozen=True)
class AnswersVlmEvalKit(Scorer):
    """VLMEvalKit's AMBER: accuracy per kind (attributes together) and their mean; `Question` references."""

    shares = ()
    name: str = "vlmevalkit"
    version: str = "VLMEvalKit e8e78f0, no judge"
    figures: tuple[str, ...] = ("mean_accuracy", "existence", "attribute", "relation")

    def tally(self, references: Sequence[Question], answers: Sequence[str]) -> np.ndarray:
        """[n, 3 kinds, 2]: right, and 1."""
        counts = np.zeros((len(answers), 3, 2))
        for row, reference, answer in zip(counts, references, answers, strict=True):
            place = {"existence": 0, "relation": 2}.get(reference.kind, 1)
            row[place] = (read_vlmevalkit(answer) == ("no" if reference.negative else "yes"), 1)
        return counts

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        each = 100 * ratio(sums[..., 0], sums[..., 1])
        asked = (sums[..., 1] > 0).sum(-1)
        mean = ratio(np.nansum(each, axis=-1), asked)
        return {"mean_accuracy": mean, **dict(zip(self.figures[1:], np.moveaxis(each, -1, 0), strict=True))}

    def right(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, :, 0].sum(1).astype(bool)


def _read_own(answer: str) -> str:
    return {"yes": "Yes", "no": "No"}.get(read_strictly(answer), "")


@dataclass(frozen=True)
class Amber(Scored):
    """AMBER's questions of one evaluation type."""

    items: tuple[Item, ...]
    task: str = "a"
    words: AmberWords | None = None
    suffix: str = SUFFIX
    name: str = "amber"
    about: ClassVar[About] = About(
        title="AMBER",
        paper="Wang et al., 2023, arXiv 2311.07397",
        licence="Apache-2.0",
        images="1,004 photographs from MS-COCO and Unsplash as published on Google Drive; licences unstated",
        home="https://github.com/junyangwang0410/AMBER",
        hub="Kyunnilee/amber_g",
        files=tuple(
            github(
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
        folder: Path,
        images: Path | None = None,
        *,
        task: str = "a",
        similarity: Similarity | Path | str = MODEL,
        ids: Collection[int] | None = None,
        limit: int | None = None,
        suffix: str = SUFFIX,
    ) -> Amber:
        """The official files in `folder`, photographs as AMBER_<n>.jpg in `images` (`folder`/image).

        Args:
            task: the official evaluation type: a, g, d, de, da or dr.
            similarity: a table of word similarities as a file, the name of an installed spaCy model, or
                `EXACT`; only for descriptions (a, g).
            ids: only these question ids.
            suffix: appended to yes/no questions, never to "Describe this image."

        Raises:
            InputError: an unknown task, a missing or malformed file, no word similarities.
        """
        if task not in TASKS:
            raise InputError(f"AMBER has the tasks {', '.join(TASKS)}, not {task!r}")
        words = _words(folder, similarity) if task in ("a", "g") else None
        pictures = images or folder / "image"
        path = files.find_file(folder, "query/query_all.json", "query_all.json")
        annotated = files.find_file(folder, "annotations.json")
        references = _references(annotated, words)
        items = []
        for line, record in files.read_records(path):
            source = f"{path}:{line}"
            number = files.field(record, "id", int, source)
            if not 1 <= number <= len(references):
                raise InputError(f"{source}: id {number}, but {annotated} has {len(references)} annotations")
            reference = references[number - 1]
            if _wanted(task, reference) and (ids is None or number in ids):
                picture = pictures / files.field(record, "image", str, source)
                items.append(
                    _item(number, picture, files.field(record, "query", str, source), reference, source)
                )
        return cls(first(items, limit), task, words, suffix)

    @classmethod
    def of_demo(cls, limit: int | None = None) -> Amber:
        """Descriptions of the shipped scenes, with AMBER's figures.

        Nouns are words of the closed list of categories; what a model is led to claim are the three absent
        categories that the scene makes expect most.
        """
        from regaze.demo import scenes
        from regaze.demo.world import CATEGORIES, co_occurrence

        reader = ClosedVocabulary(tuple(CATEGORIES))

        def nouns(caption: str) -> list[str]:
            return [mention.category for mention in reader.read(caption)[0]]

        items = []
        for number, scene in enumerate(scenes(), start=1):
            there = tuple(thing.category for thing in scene.objects)
            expected = co_occurrence().expectation(list(there))
            ranked = sorted(zip(-expected, CATEGORIES, strict=True))
            absent = [name for _, name in ranked if name not in there]
            item = _item(number, scene.path, "Describe this image.", Scene(there, tuple(absent[:3])))
            items.append(item)
        words = AmberWords(dict.fromkeys(CATEGORIES, ()), frozenset(), EXACT, nouns)
        return cls(first(items, limit), "g", words)

    def prompt(self, item: Item) -> str:
        return item.question + (self.suffix if isinstance(item.reference, Question) else "")

    def scorers(self) -> Sequence[Scorer]:
        vectors = f", similarity: {self.words.similar.name}" if self.words else ""
        version = f"junyangwang0410/AMBER 534babf inference.py{vectors}"
        official = AmberScorer("official", version, self.words, self.task)
        if self.task == "a":
            return (official,)
        if self.words is not None:
            return (official, DescriptionsLmmsEval(self.words))
        return (official, AnswersVlmEvalKit(), AmberScorer("regaze", "1", None, self.task, _read_own))

    def groups(self) -> dict[str, list[int]]:
        """One block: the official figures are about all questions of the evaluation type."""
        return {self.task: list(range(len(self.items)))}

    def cluster(self, item: Item) -> str:
        return item.image.name if item.image is not None else item.key


def read_responses(path: Path) -> dict[int, str]:
    """{id: response} of a submission file. Raises InputError naming the file and the line."""
    responses: dict[int, str] = {}
    for line, record in files.read_records(path):
        source = f"{path}:{line}"
        number = files.field(record, "id", int, source)
        if not isinstance(record.get("response"), str) or number in responses:
            raise InputError(f"{source}: expected one 'response' per id, as a text; got {record!r}")
        responses[number] = record["response"]
    return responses


def _words(folder: Path, similarity: Similarity | Path | str) -> AmberWords:
    path = files.find_file(folder, "relation.json")
    associations = files.read_json(path)
    if not isinstance(associations, dict) or not all(
        isinstance(each, list) for each in associations.values()
    ):
        raise InputError(f"{path}: expected an object of words, each with a list of associated words")
    safe = frozenset(files.read_text(files.find_file(folder, "safe_words.txt")).split("\n"))
    words = AmberWords(associations, safe, EXACT)
    if isinstance(similarity, str):
        similarity = spacy_similarity(words.vocabulary(), similarity)
    elif isinstance(similarity, Path):
        similarity = read_similarity(similarity)
    return AmberWords(associations, safe, similarity)


def _references(path: Path, words: AmberWords | None) -> list[Scene | Question]:
    """The annotations in the order of their ids."""
    references: list[Scene | Question] = []
    for number, (line, record) in enumerate(files.read_records(path), start=1):
        source = f"{path}:{line}"
        kind = files.field(record, "type", str, source)
        if files.field(record, "id", int, source) != number:
            raise InputError(f"{source}: id {record['id']} at place {number}; ids must count from 1")
        if kind == "generative":
            lists = [tuple(files.field(record, key, list, source)) for key in ("truth", "hallu")]
            unknown = [word for each in lists for word in each if words and word not in words.associations]
            if unknown:
                raise InputError(f"{source}: {unknown[0]!r} is not in relation.json")
            references.append(Scene(*lists))
        elif kind in _TYPES and record.get("truth") in ("yes", "no"):
            references.append(Question(_TYPES[kind], record["truth"] == "no"))
        else:
            raise InputError(f"{source}: unknown type {kind!r}, or 'truth' is not yes or no")
    return references


def _wanted(task: str, reference: Scene | Question) -> bool:
    if isinstance(reference, Scene):
        return task in ("a", "g")
    return task in ("a", "d") or reference.kind in _OF_TASK.get(task, ())


def _item(number: int, image: Path, query: str, reference: Scene | Question, source: str = "") -> Item:
    if isinstance(reference, Scene):
        return Item(str(number), "generative", image, query, "", source, reference)
    label = "no" if reference.negative else "yes"
    return Item(str(number), f"discriminative-{reference.kind}", image, query, label, source, reference)
