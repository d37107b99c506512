"""Needle in a haystack for text models: a sentence hidden at some depth of a long text (Kamradt, 2023).

The text is cut to a number of tokens, the needle is inserted after the last full stop before a given depth,
and a question asks for it, over a grid of lengths and depths. The official essays are not free to use: give a
text of your own (`regaze.interventions.retrieval_heads.read_haystack` reads one), for example one in the
public domain.

The official score is a language model's, 1 to 10. Without a judge two rules are used here: `recall`, the
share of the answer's words that the response has, and `found`, whether it has them all in a row.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import judges
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.final_answer import without_thinking
from regaze.eval.benchmarks.common.judged import JudgedBenchmark, JudgePrompt
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.tokenizer import Tokenizer
from regaze.interventions.retrieval_heads.needles import NEEDLES, Needle
from regaze.interventions.retrieval_heads.prompt_builder import TEMPLATE
from regaze.interventions.retrieval_heads.recall import unigram_recall
from regaze.reading import StrPath

#: Tokens that the official tester leaves for the question and the answer.
BUFFER = 200
LENGTHS = (1000, 2000, 4000, 8000, 16000)
DEPTHS = (0, 25, 50, 75, 100)


def needle_depths(depth: float, count: int) -> list[float]:
    """Depths of several needles in percent: the first as given, the others evenly spaced up to the end."""
    step = (100 - depth) / count
    return [depth + i * step for i in range(count)]


def insert_needles(
    text: str,
    needles: Sequence[str],
    length: int,
    depth: float,
    tokenizer: Tokenizer,
    buffer: int = BUFFER,
) -> str:
    """`text` with the needles in it, cut to `length` - `buffer` tokens in all.

    A needle is inserted after the last token before its depth that is (part of) a full stop; at the very
    start if there is none, as with tokenizers that merge a full stop with what follows. At depth 100 it is
    inserted at the very end. Depths of later needles refer to the text with the earlier ones in it.

    Raises:
        InputError: The depth is outside 0..100, or the length leaves no room for the needles.
    """
    if not 0 <= depth <= 100:
        raise InputError(f"a depth is a percentage in 0..100, got {depth}")
    encoded = [list(tokenizer.encode(needle, add_special_tokens=False)) for needle in needles]
    room = length - buffer - sum(map(len, encoded))
    if room < 1:
        raise InputError(
            f"length {length} is too short: needles and a buffer of {buffer} take {length - room}"
        )
    whole = list(tokenizer.encode(text, add_special_tokens=False))
    if len(whole) > length:  # encoded again, as officially: tokens at the cut may change
        whole = list(tokenizer.encode(tokenizer.decode(whole[:length]), add_special_tokens=False))
    context = whole[:room] if len(whole) > room else whole
    stops = set(tokenizer.encode(".", add_special_tokens=False))
    for needle, needle_depth in zip(encoded, needle_depths(depth, len(encoded)), strict=True):
        at = len(context)
        if needle_depth != 100:
            at = int(len(context) * (needle_depth / 100))
            while at and context[at - 1] not in stops:
                at -= 1
        context[at:at] = needle
    return tokenizer.decode(context)


@dataclass(frozen=True)
class WordRecallScorer(Scorer):
    """Share of the answer's words that a response has behind its thinking; references are `Needle`."""

    name: str = "words"
    version: str = "regaze 2"
    metrics: tuple[str, ...] = ("recall", "found")

    def count(self, references: Sequence[Needle], answers: Sequence[str]) -> np.ndarray:
        """[n, 3]: recall, found, 1."""
        responses = [without_thinking(answer) for answer in answers]
        return np.array(
            [
                (unigram_recall(needle.answer, response), needle.answer.lower() in response.lower(), 1)
                for needle, response in zip(references, responses, strict=True)
            ],
            dtype=np.float64,
        )

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {name: ratio(sums[..., i], sums[..., 2]) for i, name in enumerate(self.metrics)}


JUDGE = JudgePrompt(
    "A text holds the answer to a question; somebody read it and answered.\n"
    "Question: {question}\n"
    "Reference: {reference}\n"
    "Answer: {answer}\n"
    "Grade how well the answer agrees with the reference: 1 nothing to do with it, 3 touches the subject "
    "but is wrong, 5 partly right, 7 right with something missing, 10 right and complete. End with the "
    'grade in double brackets, as in "Rating: [[5]]".',
    "regaze 1",
)
_PLACEHOLDERS = ("question", "reference", "answer")


def read_rating(text: str) -> float:
    """The number 1 to 10 in the last double brackets of a verdict; nan if there is none."""
    found = re.findall(r"\[\[(\d+(?:\.\d+)?)\]\]", text)
    value = float(found[-1]) if found else np.nan
    return value if 1 <= value <= 10 else np.nan


@dataclass(frozen=True)
class RatingScorer(Scorer):
    """Mean of a judge's ratings 1 to 10; unreadable ones are left out and counted."""

    fractions = ("unreadable",)
    name: str = "judge"
    version: str = "after gkamradt 7b90d28 (LangChain labeled_score_string)"
    metrics: tuple[str, ...] = ("rating", "unreadable")

    def count(self, references: Sequence[Any], answers: Sequence[float]) -> np.ndarray:
        """[n, 3]: rating, readable, 1."""
        ratings = np.asarray(answers, dtype=np.float64)
        readable = ~np.isnan(ratings)
        return np.stack([np.where(readable, ratings, 0), readable, np.ones_like(ratings)], axis=1)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        rating = ratio(sums[..., 0], sums[..., 1])
        return {"rating": rating, "unreadable": 1 - ratio(sums[..., 1], sums[..., 2])}


@dataclass(frozen=True)
class Niah(BaseBenchmark):
    """A grid of prompts: a split per length; the key holds the depth."""

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
        tokenizer: Tokenizer,
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
            tokenizer: The model's tokenizer.
            template: The user's message, with {context} and {question}.

        Raises:
            InputError: The haystack is empty, a length leaves no room, or a depth is outside 0..100.
        """
        if not haystack.strip():
            raise InputError("the haystack is empty")
        tokens_per_copy = max(1, len(tokenizer.encode(haystack, add_special_tokens=False)))
        text = haystack * (1 + max(lengths) // tokens_per_copy)
        items = []
        for length in lengths:
            for depth in depths:
                for number, needle in enumerate(needles):
                    hidden = f"\n{needle.text}\n"
                    context = insert_needles(text, [hidden], length, depth, tokenizer, buffer)
                    prompt = template.replace("{question}", needle.question).replace("{context}", context)
                    key = f"{length}/{depth}/{number}"
                    items.append(Item(key, str(length), None, prompt, needle.answer, "", needle))
        return cls(limit_items(items, limit), **options)

    def scorers(self) -> Sequence[Scorer]:
        return (WordRecallScorer(),)


@dataclass(frozen=True)
class JudgedNiah(JudgedBenchmark):
    """The same grid, graded 1 to 10 by a judge."""

    items: tuple[Item, ...]
    judge: judges.Judge | None = None
    judge_prompt: JudgePrompt = JUDGE
    name: str = "niah-judged"
    about: ClassVar[About] = dataclasses.replace(Niah.about, title="Needle in a haystack, judged")

    @classmethod
    def build(
        cls,
        haystack: str,
        tokenizer: Tokenizer,
        *,
        judge: judges.Judge | None = None,
        prompt: StrPath | None = None,
        lengths: Sequence[int] = LENGTHS,
        depths: Sequence[float] = DEPTHS,
        limit: int | None = None,
    ) -> JudgedNiah:
        """As `Niah.build`, with a judge; `prompt` is a file with another prompt to it than ours.

        Raises:
            InputError: There is no judge, the prompt lacks a placeholder, and as `Niah.build`.
        """
        judges.require_judge(judge, cls.about.title)
        judge_prompt = JudgePrompt.from_file(prompt, _PLACEHOLDERS) if prompt else JUDGE
        grid = Niah.build(haystack, tokenizer, lengths=lengths, depths=depths, limit=limit)
        return cls(grid.items, judge, judge_prompt)

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        prompts = [
            self.judge_prompt.fill(
                question=item.reference.question, reference=item.reference.text, answer=answer
            )
            for item, answer in zip(self.items, answers, strict=True)
        ]
        return [read_rating(text) for text in self.require_judge().judge(prompts)]

    def scorers(self) -> Sequence[Scorer]:
        return (RatingScorer(version=f"{RatingScorer.version}, prompt {self.judge_prompt.name}"),)
