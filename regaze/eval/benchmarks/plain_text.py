"""Plain text: what a method leaves of the language model, without an image.

`text-questions` asks twenty questions of common knowledge; an answer is right where one of the accepted words
is in it. `perplexity` generates nothing: passages are decoded token by token under the method as answers to a
request for a text, and their log-probability is the answer.

A loss here is damage: there is no image that could be looked at better. Methods that act on image tokens
alone change nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from regaze.bed.scenes import TEXT_FILE
from regaze.demo.shipped import FITTING_FILE
from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.files import read_json, read_records

HOME = "https://github.com/regaze/regaze"
ANSWER_TOKENS = 32
#: What the passages answer.
REQUESTS = {"demo": "Describe the image in detail.", "bed": "Write a paragraph of a text."}


@dataclass(frozen=True)
class TextQuestions(BaseBenchmark):
    """Questions of common knowledge; references are the accepted words."""

    items: tuple[Item, ...]
    suffix: str = ""
    name: str = "text-questions"
    about: ClassVar[About] = About("Text questions", "regaze's own", "Apache-2.0", "none", HOME)

    @classmethod
    def of_bed(cls, limit: int | None = None) -> TextQuestions:
        """The twenty questions that the bed is measured with before and after its training."""
        items = [
            Item(
                *(str(number), "text", None, each["text"], each["accepted"][0]),
                reference=tuple(each["accepted"]),
                max_new_tokens=ANSWER_TOKENS,
                id=str(number),
            )
            for number, each in enumerate(read_json(TEXT_FILE)["questions"], start=1)
        ]
        return cls(limit_items(items, limit))

    def scorers(self) -> Sequence[Scorer]:
        return (ACCEPTED,)


@dataclass(frozen=True)
class Perplexity(BaseBenchmark):
    """Passages; an answer is the log-probability of one, and its number of tokens."""

    items: tuple[Item, ...]
    suffix: str = ""
    name: str = "perplexity"
    about: ClassVar[About] = About("Perplexity", "regaze's own", "Apache-2.0", "none", HOME)

    @classmethod
    def of_demo(cls, limit: int | None = None) -> Perplexity:
        """True captions of scenes that no benchmark asks about: the only texts that the demo model knows."""
        return cls._of([record["value"] for _, record in read_records(FITTING_FILE)], "demo", limit)

    @classmethod
    def of_bed(cls, limit: int | None = None) -> Perplexity:
        """The passages that the bed is measured with before and after its training."""
        return cls._of(read_json(TEXT_FILE)["passages"], "bed", limit)

    @classmethod
    def _of(cls, passages: Sequence[str], owner: str, limit: int | None) -> Perplexity:
        items = [
            Item(str(n), "text", None, REQUESTS[owner], text, reference=text, continuation=text, id=str(n))
            for n, text in enumerate(passages, start=1)
        ]
        return cls(limit_items(items, limit))

    def scorers(self) -> Sequence[Scorer]:
        return (LOG_PROBABILITY,)


class AcceptedScorer(Scorer):
    """The share of answers that hold one of the accepted words, whatever their case."""

    name = "regaze"
    version = "1"
    metrics = ("accuracy",)
    accuracy_metric = "accuracy"

    def count(self, references: Sequence[Sequence[str]], answers: Sequence[str]) -> np.ndarray:
        """[n, 2]: right, and 1."""
        pairs = zip(references, answers, strict=True)
        return np.array([(_accepts(words, answer), 1) for words, answer in pairs], np.int64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"accuracy": ratio(sums[..., 0], sums[..., 1])}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, 0] > 0


class LogProbabilityScorer(Scorer):
    """Mean log-probability of a token in nats, and perplexity; references are the passages."""

    name = "regaze"
    version = "1"
    metrics = ("logprob", "perplexity")
    fractions = ()
    lower_is_better = ("perplexity",)

    def count(self, references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """[n, 2]: log-probability of a passage, and its tokens."""
        return np.array([_read(answer) for answer in answers], np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        mean = ratio(sums[..., 0], sums[..., 1])
        return {"logprob": mean, "perplexity": np.exp(-mean)}


def excludes_tokens(answer: str) -> bool:
    """Whether a method made some token of a passage impossible, so that its perplexity means nothing."""
    return answer.endswith(" excluded")


ACCEPTED, LOG_PROBABILITY = AcceptedScorer(), LogProbabilityScorer()


def _accepts(words: Sequence[str], answer: str) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in words)


def _read(answer: str) -> tuple[float, float]:
    match = re.fullmatch(r"(-?\d+\.\d+) of (\d+) tokens(?:, \d+ excluded)?", answer)
    if match is None:
        raise InputError(
            f"perplexity: expected an answer such as '-41.250000 of 17 tokens', got {answer!r}; only "
            "`regaze evaluate` and `compare` make them"
        )
    return float(match[1]), float(match[2])
