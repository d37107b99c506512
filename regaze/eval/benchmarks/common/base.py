"""What a benchmark is to the runner: items to ask about, the prompt of each, and a score for the answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from regaze.errors import InputError
from regaze.eval.benchmarks.common.download import Remote
from regaze.eval.benchmarks.common.scoring import Scorer, compare
from regaze.toolkit.prompts.images import open_image

#: stands for an image in the prompts of LLaVA and others: in a question it would ask for one more image
IMAGE_TOKEN = "<image>"


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        key: unique within the benchmark.
        split: the part of the benchmark that it belongs to.
        image: the file of its image, None for a question without one.
        question: what is asked, without the benchmark's suffix.
        label: the right answer as text, "" where there is no single one.
        source: where it was read ("file:line").
        reference: all that scoring needs, as the benchmark's scorers expect it.
        more_images: the images after the first.
        max_new_tokens: a limit of its own for the answer; None leaves it to the run.
        options: answers to choose from. Where there are any, nothing is generated: the likeliest one is the
            answer (`regaze.eval.run.ranking`).
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

    @property
    def images(self) -> tuple[Path, ...]:
        """All images, in the order in which they are shown."""
        return (*(() if self.image is None else (self.image,)), *self.more_images)


@dataclass(frozen=True)
class About:
    """What a user should know before quoting a figure.

    Attributes:
        title: the benchmark's name as papers write it. paper: where it was published.
        licence: of questions and labels, as their publisher states it.
        images: where the images come from and under which terms; they are never part of this package.
        home: the repository or page that publishes it.
        hub: data set on the Hugging Face hub, None where there is none.
        files: questions and labels, for `regaze.eval.benchmarks.download`; never images.
    """

    title: str
    paper: str
    licence: str
    images: str
    home: str
    hub: str | None = None
    files: tuple[Remote, ...] = ()


class Benchmark(Protocol):
    """Anything with items, prompts and a score can be run."""

    @property
    def name(self) -> str:
        """What results, options and answers call it."""

    @property
    def items(self) -> Sequence[Item]:
        """Every question, in the order in which it is asked."""

    def prompt(self, item: Item) -> str:
        """The text put to the model for `item`."""

    def score(self, answers: Mapping[str, Sequence[str]], *, seed: int) -> dict[str, Any]:
        """Figures per split and scorer; `answers` maps "plain" and "edited" to one answer per item."""

    def describe(self) -> dict[str, Any]:
        """Where the questions came from, for the results file (plain JSON values)."""


class Scored:
    """Base of the benchmarks here: prompts with a suffix, scores by scorer and split, intervals by cluster.

    A subclass is a frozen dataclass with `items`, `name` and `suffix`, and says by which `scorers` it is
    scored.
    """

    about: ClassVar[About]
    name: str
    items: tuple[Item, ...]
    suffix: str = ""

    def prompt(self, item: Item) -> str:
        """The question followed by the suffix."""
        return item.question + self.suffix

    def scorers(self) -> Sequence[Scorer]:
        """The rules that answers are scored by; the first is the benchmark's own where it runs here."""
        raise NotImplementedError

    def groups(self) -> dict[str, list[int]]:
        """Which items each block of figures is about: every split, and all when there are several."""
        groups: dict[str, list[int]] = {}
        for index, item in enumerate(self.items):
            groups.setdefault(item.split, []).append(index)
        if len(groups) > 1:
            groups["all"] = list(range(len(self.items)))
        return groups

    def cluster(self, item: Item) -> Hashable:
        """What is drawn when intervals are bootstrapped: the image, or the question where there is none.

        Items that a scorer counts together (both questions of an image, all of a figure) must share it.
        """
        return item.key if item.image is None else str(item.image)

    def references(self, items: Sequence[Item]) -> list[Any]:
        """What the scorers compare the answers with."""
        return [item.reference for item in items]

    def score(self, answers: Mapping[str, Sequence[str]], *, seed: int) -> dict[str, Any]:
        """{split: {"questions", "images", scorer: {condition: {figure: {value, low, high}}, "difference"}}}.

        Raises:
            InputError: not one answer per item.
        """
        for name, given in answers.items():
            if len(given) != len(self.items):
                raise InputError(f"{self.name}: {len(given)} answers ({name}) to {len(self.items)} questions")
        return self._score(answers, seed)

    def _score(self, answers: Mapping[str, Sequence[Any]], seed: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for split, indices in self.groups().items():
            items = [self.items[i] for i in indices]
            chosen = {name: [every[i] for i in indices] for name, every in answers.items()}
            out[split] = {
                "questions": len(items),
                "images": len({item.image for item in items} - {None}),
                **{scorer.name: self._compare(scorer, items, chosen, seed) for scorer in self.scorers()},
            }
        return out

    def _compare(
        self, scorer: Scorer, items: Sequence[Item], answers: Mapping[str, Sequence[Any]], seed: int
    ) -> dict[str, Any]:
        references = self.references(items)
        return compare(
            scorer, references, answers, clusters=[self.cluster(item) for item in items], seed=seed
        )

    def describe(self) -> dict[str, Any]:
        """Name, the questions' number and hash, suffix, licence, and the scorers with their versions."""
        asked = [(item.key, item.question, item.label) for item in self.items]
        return {
            "name": self.name,
            "questions": len(self.items),
            "questions_sha256": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
            "suffix": self.suffix,
            "licence": self.about.licence,
            "scorers": {scorer.name: scorer.version for scorer in self.scorers()},
        }


T = TypeVar("T")


def first(
    items: Sequence[Item], limit: int | None, whole: Mapping[str, Hashable] | None = None
) -> tuple[Item, ...]:
    """The first `limit` items of each split, None for all.

    Args:
        whole: {item key: group}; a group that has begun is kept whole, however far it goes.

    Raises:
        InputError: a limit below 1.
    """
    if limit is None:
        return tuple(items)
    if limit < 1:
        raise InputError(f"limit {limit}: expected at least 1 question")
    kept, counts, begun = [], dict[str, int](), set()
    for item in items:
        group = (whole or {}).get(item.key, item.key)
        if counts.get(item.split, 0) < limit or group in begun:
            kept.append(item)
            begun.add(group)
            counts[item.split] = counts.get(item.split, 0) + 1
    return tuple(kept)


def check_image(item: Item) -> None:
    """Decode the item's images once.

    Raises:
        InputError: a file is missing or cannot be decoded; names the file and the line that asked for it.
    """
    for image in item.images:
        try:
            open_image(image)
        except InputError as error:
            asked = f" (asked for by {item.source})" if item.source else ""
            raise InputError(f"{error}{asked}") from error
