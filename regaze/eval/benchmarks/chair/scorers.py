"""CHAIR's scoring rules, which differ in how they find objects in text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from regaze.eval.benchmarks.chair.ground_truth import GroundTruth
from regaze.eval.benchmarks.chair.words import (
    ObjectReader,
    SynonymReader,
    pattern_forms,
    read_synonyms,
    wordnet_forms,
)
from regaze.eval.benchmarks.common.final_answer import without_thinking
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.vocabulary import ClosedVocabulary, Mention
from regaze.reading import StrPath

METRICS = ("chair_s", "chair_i", "recall", "length", "chair_distinct", "words", "repeated_4grams")


class CaptionObjects(NamedTuple):
    """The objects of one caption.

    Attributes:
        named: Objects that the caption names, in order.
        hallucinated: Those that are not in the image.
        present: Categories that are in the image.
        length: Number of base forms of the caption.
    """

    named: list[Mention]
    hallucinated: list[Mention]
    present: set[str]
    length: int


@dataclass(frozen=True)
class ChairScorer(Scorer):
    """CHAIR with one way of finding objects in text; references are `GroundTruth`.

    A caption is the answer without the model's thinking, which is no caption.

    Besides the metrics of the official scorers there are some that reveal spurious gains: `chair_distinct`
    counts an object once however often it is named; `words` is the length of a caption; `repeated_4grams` is
    the share of 4-grams that repeat an earlier one.
    """

    fractions = ("chair_s", "chair_i", "recall", "chair_distinct", "repeated_4grams")
    lower_is_better = ("chair_s", "chair_i", "chair_distinct", "repeated_4grams")
    name: str
    version: str
    reader: ObjectReader
    metrics: tuple[str, ...] = METRICS

    def caption_objects(self, truth: GroundTruth, caption: str) -> CaptionObjects:
        """The objects that a caption names, compared with those of the image."""
        present = objects_in_image(self.reader, truth)
        named, words = read_caption(self.reader, caption)
        hallucinated = [mention for mention in named if mention.category not in present]
        return CaptionObjects(named, hallucinated, present, len(words))

    def count(self, references: Sequence[GroundTruth], answers: Sequence[str]) -> np.ndarray:
        """[n, 11], in the order in which `compute` takes them."""
        return np.array([self._count_one(*pair) for pair in zip(references, answers, strict=True)])

    def _count_one(self, truth: GroundTruth, caption: str) -> tuple[int, ...]:
        caption = without_thinking(caption)
        objects = self.caption_objects(truth, caption)
        distinct = {mention.category for mention in objects.named}
        words = caption.lower().split()
        grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
        return (
            int(bool(objects.hallucinated)),
            len(objects.hallucinated),
            len(objects.named),
            len(distinct & objects.present),
            len(objects.present),
            objects.length,
            len(distinct),
            len(words),
            len(grams) - len(set(grams)),
            len(grams),
            1,
        )

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        columns = np.moveaxis(sums, -1, 0)
        with_hallucination, hallucinated, named, found, present, length = columns[:6]
        distinct, words, repeated, grams, captions = columns[6:]
        metrics = {
            "chair_s": ratio(with_hallucination, captions),
            "chair_i": ratio(hallucinated, named),
            "recall": ratio(found, present),
            "length": ratio(length, captions),
            "chair_distinct": ratio(distinct - found, distinct),
            "words": ratio(words, captions),
            "repeated_4grams": ratio(repeated, grams),
        }
        return {metric: metrics[metric] for metric in self.metrics}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        """Captions without a hallucination."""
        return counts[:, 0] == 0


@lru_cache(maxsize=1 << 17)
def read_caption(reader: ObjectReader, caption: str) -> tuple[list[Mention], list[str]]:
    """As `ObjectReader.read`, cached: captions repeat, the plain model's and the annotators'."""
    return reader.read(caption)


def objects_in_image(reader: ObjectReader, truth: GroundTruth) -> set[str]:
    """Categories in the image: the known ones, and those that its captions name."""
    present = set(truth.objects)
    for caption in truth.captions:
        present |= {mention.category for mention in read_caption(reader, caption)[0]}
    return present


def official_scorers(synonyms: StrPath) -> tuple[ChairScorer, ...]:
    """The three scorers in use, with the words of the official synonyms.txt."""
    return scorers_with(read_synonyms(synonyms))


def closed_scorer(categories: tuple[str, ...]) -> ChairScorer:
    """The scorer that finds the words of a closed list."""
    return ChairScorer("chair", "regaze closed vocabulary, 1", ClosedVocabulary(categories))


def scorers_with(table: Mapping[str, str]) -> tuple[ChairScorer, ...]:
    """The three scorers in use, with a table of {word: category}."""
    pattern, wordnet = SynonymReader(table, pattern_forms), SynonymReader(table, wordnet_forms)
    added = ("chair_distinct", "words", "repeated_4grams")
    return (
        ChairScorer("opera", "shikiw/OPERA 61426ef chair.py", wordnet, METRICS),
        ChairScorer(
            "original", "LisaAnne/Hallucination 6e4d33c chair.py", pattern, ("chair_s", "chair_i", *added)
        ),
        ChairScorer(
            "standalone",
            "Maxlinn/CHAIR-metric-standalone 640c507",
            pattern,
            ("chair_s", "chair_i", "recall", *added),
        ),
    )
