"""Needle in a haystack for text models: a sentence hidden at some depth of a long text (Kamradt, 2023).

The text is cut to a number of tokens, the needle goes behind the nearest full stop before the wanted depth,
and a question asks for it, over a grid of lengths and depths. The official essays are not free to use: give a
text of your own (`regaze.interventions.retrieval_heads.read_haystack` reads one), public-domain ones serve.

The official score is a language model's, 1 to 10. Without a judge two rules are used here: `recall`, the part
of the answer's words that the response has, and `found`, whether it has them all in a row.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from regaze.errors import InputError
from regaze.eval import judges
from regaze.eval.benchmarks.common.base import About, Item, Scored, first
from regaze.eval.benchmarks.common.judged import Judged, Template
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.interventions.retrieval_heads.needles import NEEDLES, TEMPLATE, Needle, unigram_recall

BUFFER = 200  # tokens that the official tester leaves for the question and the answer
LENGTHS = (1000, 2000, 4000, 8000, 16000)
DEPTHS = (0, 25, 50, 75, 100)


class Tokens(Protocol):
    """What is needed of a tokenizer; transformers' have it."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[Any]:
        """Text to tokens."""

    def decode(self, tokens: Sequence[Any]) -> str:
        """Tokens to text."""


def linear_depths(count: int = 35) -> list[int]:
    """The official grid of depths: evenly spaced whole percents."""
    return [int(depth) for depth in np.round(np.linspace(0, 100, count))]


def sigmoid_depths(count: int = 35) -> list[float]:
    """The official grid with more depths near both ends; it runs from the end to the start, as published."""
    spaced = np.linspace(0, 100, count)
    curve = np.round(100 / (1 + np.exp(0.1 * (spaced - 50))), 3)
    return [float(x if x in (0, 100) else y) for x, y in zip(spaced, curve, strict=True)]


def needle_depths(depth: float, count: int) -> list[float]:
    """Depths of several needles: the first as wanted, the others evenly on towards the end."""
    step = (100 - depth) / count
    return [depth + number * step for number in range(count)]


def insert_needles(
    text: str, needles: Sequence[str], length: int, depth: float, tokens: Tokens, buffer: int = BUFFER
) -> str:
    """`text`, cut so that with the needles it has `length` - `buffer` tokens, with the needles in it.

    A needle goes to the token at its depth, or from there back to behind the last token that is (part of) a
    full stop; to the very start if there is none, as with tokenizers that merge a full stop with what
    follows. At depth 100 it goes to the very end. Depths of later needles count in the text with the former
    ones in it.

    Raises:
        InputError: a depth outside 0..100, or a length without room for the needles.
    """
    if not 0 <= depth <= 100:
        raise InputError(f"a depth is a percentage in 0..100, got {depth}")
    encoded = [list(tokens.encode(needle, add_special_tokens=False)) for needle in needles]
    room = length - buffer - sum(map(len, encoded))
    if room < 1:
        raise InputError(
            f"length {length} is too short: needles and a buffer of {buffer} take {length - room}"
        )
    whole = list(tokens.encode(text, add_special_tokens=False))
    if len(whole) > length:  # cut and read again, as officially: tokens at the cut may change
        whole = list(tokens.encode(tokens.decode(whole[:length]), add_special_tokens=False))
    context = whole[:room] if len(whole) > room else whole
    stops = set(tokens.encode(".", add_special_tokens=False))
    for needle, wanted in zip(encoded, needle_depths(depth, len(encoded)), strict=True):
        place = len(context)
        if wanted != 100:
            place = int(len(context) * (wanted / 100))
            while place and context[place - 1] not in stops:
                place -= 1
        context[place:place] = needle
    return tokens.decode(context)


@dataclass(frozen=True)
class Words(Scorer):
    """How much of the answer's words a response has; references are `Needle`."""

    name: str = "words"
    version: str = "regaze 1"
    figures: tuple[str, ...] = ("recall", "found")

    def tally(self, references: Sequence[Needle], answers: Sequence[str]) -> np.ndarray:
        """[n, 3]: recall, found, 1."""
        return np.array(
            [
                (unigram_recall(needle.answer, answer), needle.answer.lower() in answer.lower(), 1)
                for needle, answer in zip(references, answers, strict=True)
            ],
            dtype=np.float64,
        )

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {name: ratio(sums[..., i], sums[..., 2]) for i, name in enumerate(self.figures)}


JUDGE = Template(
    "A text holds the answer to a question; somebody read it and answered.\n"
    "Question: {question}\n"
    "Reference: {reference}\n"
    "Answer: {answer}\n"
    "Grade how well the answer agrees with the reference: 1 nothing to do with it, 3 touches the subject "
    "but is wrong, 5 partly right, 7 right with something missing, 10 right and complete. End with the "
    'grade in double brackets, as in "Rating: [[5]]".',
    "regaze 1",
)


def read_rating(text: str) -> float:
    """The number 1 to 10 in the last double brackets of a verdict; nan where there is none."""
    found = re.findall(r"\[\[(\d+(?:\.\d+)?)\]\]", text)
    value = float(found[-1]) if found else np.nan
    return value if 1 <= value <= 10 else np.nan


@dataclass(frozen=True)
class Rated(Scorer):
    """Mean of a judge's ratings 1 to 10; those that cannot be read are left out and counted."""

    shares = ("unreadable",)
    name: str = "judge"
    version: str = "after gkamradt 7b90d28 (LangChain labeled_score_string)"
    figures: tuple[str, ...] = ("rating", "unreadable")

    def tally(self, references: Sequence[Any], answers: Sequence[float]) -> np.ndarray:
        """[n, 3]: the rating, whether there is one, 1."""
        ratings = np.asarray(answers, dtype=np.float64)
        readable = ~np.isnan(ratings)
        return np.stack([np.where(readable, ratings, 0), readable, np.ones_like(ratings)], axis=1)

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        rated = ratio(sums[..., 0], sums[..., 1])
        return {"rating": rated, "unreadable": 1 - ratio(sums[..., 1], sums[..., 2])}


@dataclass(frozen=True)
class Niah(Scored):
    """A grid of prompts: a split per length, the key says the depth."""

    items: tuple[Item, ...]
    name: str = "niah"
    about: ClassVar[About] = About(
        title="Needle in a haystack",
        paper="G. Kamradt, 2023, github.com/gkamradt/LLMTest_NeedleInAHaystack",
        licence="MIT (code); the 49 essays it is run on are their author's, with no grant to use them",
        images="none: text only",
        home="https://github.com/gkamradt/LLMTest_NeedleInAHaystack",
    )

    @classmethod
    def build(
        cls,
        haystack: str,
        tokens: Tokens,
        *,
        lengths: Sequence[int] = LENGTHS,
        depths: Sequence[float] = DEPTHS,
        needles: Sequence[Needle] = NEEDLES[:1],
        buffer: int = BUFFER,
        template: str = TEMPLATE,
        limit: int | None = None,
        **options: Any,
    ) -> Niah:
        """Prompts for every length, depth and needle; the haystack is repeated until it is long enough.

        Args:
            tokens: the model's tokenizer.
            template: the user's message, with {context} and {question}.

        Raises:
            InputError: an empty haystack, a length without room, a depth outside 0..100.
        """
        if not haystack.strip():
            raise InputError("the haystack is empty")
        tokens_per_copy = max(1, len(tokens.encode(haystack, add_special_tokens=False)))
        text = haystack * (1 + max(lengths) // tokens_per_copy)
        items = []
        for length in lengths:
            for depth in depths:
                for number, needle in enumerate(needles):
                    hidden = f"\n{needle.text}\n"
                    context = insert_needles(text, [hidden], length, depth, tokens, buffer)
                    prompt = template.replace("{question}", needle.question).replace("{context}", context)
                    key = f"{length}/{depth}/{number}"
                    items.append(Item(key, str(length), None, prompt, needle.answer, "", needle))
        return cls(first(items, limit), **options)

    def scorers(self) -> Sequence[Scorer]:
        return (Words(),)


@dataclass(frozen=True)
class JudgedNiah(Judged):
    """The grid, graded 1 to 10 by a judge."""

    items: tuple[Item, ...]
    judge: judges.Judge | None = None
    template: Template = JUDGE
    name: str = "niah-judged"
    about: ClassVar[About] = dataclasses.replace(Niah.about, title="Needle in a haystack, judged")

    @classmethod
    def build(
        cls,
        haystack: str,
        tokens: Tokens,
        *,
        judge: judges.Judge | None = None,
        prompt: Path | None = None,
        lengths: Sequence[int] = LENGTHS,
        depths: Sequence[float] = DEPTHS,
        limit: int | None = None,
    ) -> JudgedNiah:
        """As `Niah.build`, with the judge; `prompt` is a file with a prompt to it other than ours.

        Raises:
            InputError: no judge, before any prompt is made; as `Niah.build`; a prompt that lacks a place.
        """
        judges.need(judge, cls.about.title)
        told = JUDGE if prompt is None else Template.from_file(prompt, ("question", "reference", "answer"))
        grid = Niah.build(haystack, tokens, lengths=lengths, depths=depths, limit=limit)
        return cls(grid.items, judge, told)

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        prompts = [
            self.template.fill(question=item.reference.question, reference=item.reference.text, answer=answer)
            for item, answer in zip(self.items, answers, strict=True)
        ]
        return [read_rating(text) for text in self.configured().judge(prompts)]

    def scorers(self) -> Sequence[Scorer]:
        return (Rated(version=f"{Rated.version}, prompt {self.template.name}"),)
