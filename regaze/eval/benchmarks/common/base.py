"""The interface of a benchmark: items, the prompt of each item, and a score for the answers."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from regaze.display import Summary, Tabular
from regaze.errors import InputError
from regaze.eval.benchmarks.common.disagreement import scorer_disagreement
from regaze.eval.benchmarks.common.download import RemoteFile
from regaze.eval.benchmarks.common.ids import plain_id
from regaze.eval.benchmarks.common.scoring import Scorer, compare
from regaze.toolkit.prompts.video import Video

if TYPE_CHECKING:
    from regaze.toolkit.prompts.conversation import Message

#: Image placeholder in the prompts of LLaVA and others. A question that holds it would ask for another image.
IMAGE_TOKEN = "<image>"


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        key: Unique within the benchmark.
        split: The part of the benchmark that the item belongs to.
        image: Path of the image, None for a question without one.
        question: The question, without the benchmark's suffix.
        label: The correct answer as text, "" where there is no single one.
        source: Where the item was read ("file:line").
        reference: What the benchmark's scorers compare answers with.
        more_images: Paths of further images.
        max_new_tokens: Limit for the answer of this item; None leaves it to the run.
        options: Candidate answers. When there are any, nothing is generated: the answer is the most likely
            candidate (`regaze.eval.run.ranking`).
        video: A video that the question is about, beside or without images.
        id: The publisher's id of the question or image, by which answer files of others name it; "" if there
            is none.
        earlier: Messages before the question: turns of a conversation, or few-shot examples. Their pictures
            are paths.
        continuation: A text that is not generated but decoded as the answer, whose log-probability is wanted
            (`regaze.eval.run.ranking`).
    """

    key: str
    split: str
    image: Path | None
    question: str
    label: str
    source: str = ""
    reference: Any = None
    more_images: tuple[Path, ...] = ()
    max_new_tokens: int | None = None
    options: tuple[str, ...] = ()
    id: str = ""
    video: Video | None = None
    earlier: tuple[Message, ...] = ()
    continuation: str = ""

    def __post_init__(self) -> None:
        if self.image is not None:  # a text may have been given
            object.__setattr__(self, "image", Path(self.image))
        object.__setattr__(self, "more_images", tuple(map(Path, self.more_images)))

    @property
    def images(self) -> tuple[Path, ...]:
        """All images, in the order in which they are shown."""
        return (*(() if self.image is None else (self.image,)), *self.more_images)

    @property
    def media(self) -> tuple[Path | Video, ...]:
        """All images, and after them the video."""
        return (*self.images, *(() if self.video is None else (self.video,)))


@dataclass(frozen=True)
class About:
    """Origin and terms of a benchmark.

    Attributes:
        title: Name as papers write it.
        paper: Where it was published.
        licence: Licence of questions and labels, as the publisher states it.
        images: Origin and terms of the images, which are never part of this package.
        home: Repository or page of the publisher.
        hub: Data set on the Hugging Face hub, None if there is none.
        files: Questions and labels for `regaze.eval.benchmarks.download`; never images.
    """

    title: str
    paper: str
    licence: str
    images: str
    home: str
    hub: str | None = None
    files: tuple[RemoteFile, ...] = ()


class Benchmark(Protocol):
    """What the runner needs of a benchmark."""

    @property
    def name(self) -> str:
        """Name in results, options and answer files."""

    @property
    def items(self) -> Sequence[Item]:
        """All questions, in the order in which they are put to the model."""

    def prompt(self, item: Item) -> str:
        """The text put to the model for `item`."""

    def score(self, answers: Mapping[str, Sequence[str]], *, seed: int) -> dict[str, Any]:
        """Metrics per split and scorer; `answers` maps "plain" and "edited" to one answer per item."""

    def describe(self) -> dict[str, Any]:
        """Origin of the questions, for the results file (plain JSON values)."""


class BaseBenchmark(Tabular):
    """Base of the benchmarks here: prompts with a suffix, scores per split and scorer, clustered intervals.

    A subclass is a frozen dataclass with `items`, `name` and `suffix`, and implements `scorers`.

    Attributes:
        image_prefix: Pattern of what stands before the number in names of images; answer files may leave it
            out (`ids.image_stem`).
        id_fields: Fields of an answer file that only together are an item's id, joined by "/".
        splits: Names of the parts that results have figures of, apart from "all"; () where files decide.
    """

    about: ClassVar[About]
    id_fields: ClassVar[tuple[str, ...]] = ()
    image_prefix: ClassVar[str] = r"COCO_[a-z]+\d+_"
    splits: ClassVar[tuple[str, ...]] = ()
    name: str
    items: tuple[Item, ...]
    suffix: str = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__repr__ = BaseBenchmark.__repr__  # type: ignore[method-assign]  # a dataclass's own lists every question

    def __repr__(self) -> str:
        images = len({image for item in self.items for image in item.images})
        about = f" about {images:,} images" if images else ""
        return f"{type(self).__name__}({self.name}: {len(self.items):,} questions{about})"

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per question, with the names of its images."""
        return {
            "key": [item.key for item in self.items],
            "split": [item.split for item in self.items],
            "images": [", ".join(image.name for image in item.images) for item in self.items],
            "question": [self.prompt(item) for item in self.items],
            "label": [item.label for item in self.items],
        }

    def _summary(self) -> Summary:
        return Summary(repr(self), self.table())

    def prompt(self, item: Item) -> str:
        """The question followed by the suffix."""
        return item.question + self.suffix

    def wordings(self, item: Item) -> tuple[str, ...]:
        """The texts by which answer files may name the question: itself, and the prompts of harnesses."""
        return item.question, self.prompt(item)

    def right_answers(self, item: Item) -> tuple[str, ...]:
        """The labels that copies of the benchmark give `item`; an answer file with another is refused."""
        return (item.label,)

    def scorers(self) -> Sequence[Scorer]:
        """The scoring rules; the first is the official one where it can run here."""
        raise NotImplementedError

    @classmethod
    def known_figures(cls) -> dict[str, tuple[str, ...]]:
        """{scorer: its figures}, without questions."""
        empty: Any = cls(items=())  # type: ignore[call-arg]
        return {scorer.name: scorer.metrics for scorer in empty.scorers()}

    def groups(self) -> dict[str, list[int]]:
        """{name of a block of results: indices of its items}: every split, and "all" if there are several."""
        groups: dict[str, list[int]] = {}
        for index, item in enumerate(self.items):
            groups.setdefault(item.split, []).append(index)
        if len(groups) > 1:
            groups["all"] = list(range(len(self.items)))
        return groups

    def cluster(self, item: Item) -> Hashable:
        """The bootstrap unit of an item: its image, or the item itself if it has none.

        Items that a scorer counts together (both questions of an image, all of a figure) must share it.
        """
        return item.key if item.image is None else str(item.image)

    def references(self, items: Sequence[Item]) -> list[Any]:
        """What the scorers compare the answers to `items` with."""
        return [item.reference for item in items]

    def notes(self) -> tuple[str, ...]:
        """Sentences that stand below the tables of results: what a reader has to know about the questions."""
        return ()

    def score(self, answers: Mapping[str, Sequence[str]], *, seed: int) -> dict[str, Any]:
        """{split: {"questions", "images", scorer: {condition: {metric: {value, low, high}}, "difference"}}}.

        Where several scorers read yes/no answers, a split also has "disagreement" (`scorer_disagreement`),
        and where there are videos, "videos".

        Raises:
            InputError: The number of answers differs from the number of items.
        """
        self.check_answers(answers)
        return self.score_per_group(answers, seed)

    def check_answers(self, answers: Mapping[str, Sequence[str]]) -> None:
        """Raises InputError unless every condition has one answer per item."""
        for condition, given in answers.items():
            if len(given) != len(self.items):
                raise InputError(
                    f"{self.name}: {len(given)} answers ({condition}) to {len(self.items)} questions"
                )

    def score_per_group(self, answers: Mapping[str, Sequence[Any]], seed: int) -> dict[str, Any]:
        """As `score`, for whatever the scorers take in place of answers (such as a judge's verdicts)."""
        out: dict[str, Any] = {}
        for group, indices in self.groups().items():
            items = [self.items[i] for i in indices]
            references, clusters = self.references(items), [self.cluster(item) for item in items]
            chosen = {condition: [given[i] for i in indices] for condition, given in answers.items()}
            scorers = self.scorers()
            figures = {
                scorer.name: compare(scorer, references, chosen, clusters=clusters, seed=seed)
                for scorer in scorers
            }
            images = len({item.image for item in items} - {None})
            out[group] = {"questions": len(items), "images": images, **figures}
            if videos := {item.video for item in items} - {None}:
                out[group]["videos"] = len(videos)
            if apart := scorer_disagreement(scorers, references, chosen, figures):
                out[group]["disagreement"] = apart
        return out

    def describe(self) -> dict[str, Any]:
        """Name, number and hash of the questions, suffix, licence, versions of the scorers, and notes."""
        questions = [(item.key, item.question, item.label) for item in self.items]
        notes = self.notes()
        return {
            "name": self.name,
            "questions": len(self.items),
            "questions_sha256": hashlib.sha256(json.dumps(questions).encode()).hexdigest(),
            "suffix": self.suffix,
            "licence": self.about.licence,
            "scorers": {scorer.name: scorer.version for scorer in self.scorers()},
            **({"notes": list(notes)} if notes else {}),
        }


def cluster_of(benchmark: Benchmark, item: Item) -> Hashable:
    """The unit of an item that any benchmark draws as a whole: its image, where it says nothing else."""
    cluster = getattr(benchmark, "cluster", None)
    return cluster(item) if cluster is not None else (item.image or item.key)


def with_items(benchmark: Benchmark, items: Iterable[Item]) -> Benchmark:
    """The benchmark with some of its items."""
    rest = copy.copy(benchmark)
    object.__setattr__(rest, "items", tuple(items))
    return rest


def limit_items(
    items: Sequence[Item], limit: int | None, groups: Mapping[str, Hashable] | None = None
) -> tuple[Item, ...]:
    """The first `limit` items of each split, None for all.

    Args:
        groups: {item key: group}. A group of which one item is taken is taken whole, beyond the limit.

    Raises:
        InputError: The limit is below 1, or two items have one key or, within a split, one id; names the
            second one's line.
    """
    _require_unique("", ((item.key,) for item in items), items)
    _require_unique("with id ", ((item.split, plain_id(item.id)) if item.id else () for item in items), items)
    if limit is None:
        return tuple(items)
    if limit < 1:
        raise InputError(f"limit {limit}: expected at least 1 question")
    chosen, counts, begun = [], dict[str, int](), set()
    for item in items:
        group = (groups or {}).get(item.key, item.key)
        if counts.get(item.split, 0) < limit or group in begun:
            chosen.append(item)
            begun.add(group)
            counts[item.split] = counts.get(item.split, 0) + 1
    return tuple(chosen)


def _require_unique(what: str, names: Iterable[tuple[str, ...]], items: Sequence[Item]) -> None:
    """Raise InputError for the second item of a name; () is no name."""
    first: dict[tuple[str, ...], Item] = {}
    for name, item in zip(names, items, strict=True):
        if name and first.setdefault(name, item) is not item:
            here = f"{item.source}: " if item.source else ""
            after = f", after {first[name].source}" if first[name].source else ""
            raise InputError(f"{here}a second question {what}{name[-1]!r}{after}")
