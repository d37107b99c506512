"""Object HalBench's scoring rules; references are `GroundTruth`, answers texts or `Listed`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from regaze.eval.benchmarks.chair.ground_truth import GroundTruth
from regaze.eval.benchmarks.chair.scorers import objects_in_image, read_caption
from regaze.eval.benchmarks.chair.words import SynonymReader
from regaze.eval.benchmarks.common.final_answer import without_thinking
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.vocabulary import Mention
from regaze.eval.benchmarks.object_halbench.objects import UnreadableReplyError

#: Answers of so many words are not shown to the judge: they name nothing.
SHORT = 3


class Listed(NamedTuple):
    """An answer and a judge's reply that lists its objects; None where the judge was not asked."""

    answer: str
    reply: str | None


class AnswerObjects(NamedTuple):
    """The objects of one answer.

    Attributes:
        named: Objects that the answer names, in order.
        hallucinated: Those that are not in the image.
        present: Categories that are in the image.
    """

    named: list[Mention]
    hallucinated: list[Mention]
    present: set[str]


def clean(answer: str) -> str:
    """An answer as the official script takes it, without "Assistant:", and without the model's thinking."""
    return without_thinking(answer).replace("Assistant:", "").strip()


@dataclass(frozen=True)
class ObjectScorer(Scorer):
    """Base of the scorers.

    Attributes:
        words: Finds objects in answers and captions.
        names: Base forms of the objects that a judge's reply lists; raises UnreadableReplyError.
    """

    lower_is_better = ("response_hall", "mention_hall", "chair_s", "no_objects", "unreadable")
    fractions = ("response_hall", "mention_hall", "chair_s", "recall", "no_objects", "unreadable")
    name: str
    version: str
    words: SynonymReader
    names: Callable[[str], list[str]] = field(repr=False)
    metrics: tuple[str, ...] = ()

    def answer_objects(self, truth: GroundTruth, answer: str | Listed) -> AnswerObjects:
        """The objects of an answer. Raises UnreadableReplyError, of a judge's reply."""
        present = objects_in_image(self.words, truth)
        if isinstance(answer, str):
            named, _ = read_caption(self.words, clean(answer))
        else:
            names = list(dict.fromkeys([] if answer.reply is None else self.names(answer.reply)))
            named = self.words.look_up(names, range(len(names)))
        return AnswerObjects(named, [each for each in named if each.category not in present], present)

    def count(self, references: Sequence[GroundTruth], answers: Sequence[Any]) -> np.ndarray:
        """[n, 10], in the order in which `compute` takes them."""
        return np.array([self._count_one(*pair) for pair in zip(references, answers, strict=True)])

    def _count_one(self, truth: GroundTruth, answer: str | Listed) -> tuple[int, ...]:
        try:
            named, wrong, present = self.answer_objects(truth, answer)
        except UnreadableReplyError:
            return (*(0,) * 8, 1, 1)
        categories = {mention.category for mention in named}
        text = clean(answer if isinstance(answer, str) else answer.answer)
        return (
            *(bool(wrong), len(wrong), len(named), bool(named)),
            *(len(categories & present), len(categories), len(present), len(text.split(" "))),
            *(0, 1),
        )

    def correct(self, counts: np.ndarray) -> np.ndarray:
        """Answers that were read and have no hallucination."""
        return (counts[:, 0] == 0) & (counts[:, 8] == 0)


@dataclass(frozen=True)
class OfficialScorer(ObjectScorer):
    """The official figures; all are undefined where the script stops.

    It stops where no answer names an object, and where a judge's reply cannot be read.
    """

    metrics: tuple[str, ...] = ("response_hall", "mention_hall", "chair_s", "recall", "length")

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        columns = np.moveaxis(sums, -1, 0)
        hallucinating, wrong, named, naming, right, _, present, length, unreadable, answers = columns
        stops = (named == 0) | (present == 0) | (unreadable > 0)
        answers = np.where(stops, 0, answers)
        return {
            "response_hall": ratio(hallucinating, np.where(stops, 0, naming)),
            "mention_hall": ratio(wrong, np.where(stops, 0, named)),
            "chair_s": ratio(hallucinating, answers),
            "recall": ratio(right, np.where(stops, 0, present)),
            "length": ratio(length, answers),
        }

    def details(self, sums: np.ndarray) -> dict[str, Any]:
        """The counts that the script prints; its "coco_word_count" are distinct right categories."""
        _, _, _, naming, right, _, present, _, _, answers = (int(each) for each in sums)
        return {
            "sentence_num": answers,
            "coco_sentence_num": naming,
            "coco_word_count": right,
            "gt_word_count": present,
        }


@dataclass(frozen=True)
class RegazeScorer(ObjectScorer):
    """Shares of all answers that could be read, and of distinct objects."""

    metrics: tuple[str, ...] = (
        *("response_hall", "mention_hall", "recall", "length", "no_objects", "unreadable"),
    )

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        columns = np.moveaxis(sums, -1, 0)
        hallucinating, _, _, naming, right, named, present, length, unreadable, answers = columns
        read = answers - unreadable
        metrics = {
            "response_hall": ratio(hallucinating, read),
            "mention_hall": ratio(named - right, named),
            "recall": ratio(right, present),
            "length": ratio(length, read),
            "no_objects": ratio(read - naming, read),
            "unreadable": ratio(unreadable, answers),
        }
        return {metric: metrics[metric] for metric in self.metrics}
