"""RULER's needle tasks for text models (Hsieh et al., COLM 2024, arXiv 2404.06654).

Eight of its thirteen tasks: numbers, words or uuids to find in a long text, with one needle among noise or
prose, one among other needles, one key with several values, several keys. A score is the share of the
expected values that the answer holds, ignoring case, in percent.

Prompts are drawn here by RULER's rules from a seed of ours, so they differ from those of its own script;
`Ruler.load` reads the files that the script prepares.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import language
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.common.tokenizer import Tokenizer
from regaze.reading import StrPath

Kind = Literal["numbers", "words", "uuids"]
Haystack = Literal["noise", "essay", "needle"]

# The benchmark's own words (NVIDIA/RULER, Apache-2.0): with others it would be another benchmark.
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
TEMPLATES = {
    "one": "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text?",
    "many": "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?",
}
PREFIXES = {
    "one": " The special magic {kind} for {query} mentioned in the provided text is",
    "many": " The special magic {kind} for {query} mentioned in the provided text are",
}
ANSWER_TOKENS = 128


@dataclass(frozen=True)
class RulerTask:
    """A task: `keys` keys of `values` values each, hidden in a haystack; the question names `queries` keys.

    Attributes:
        haystack: Lines of noise, prose, or other needles.
    """

    haystack: Haystack
    key_kind: Kind = "words"
    value_kind: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1

    @property
    def form(self) -> str:
        """Key of `TEMPLATES` and `PREFIXES`."""
        return "one" if self.values * self.queries == 1 else "many"

    @property
    def query_kind(self) -> str:
        """The kind of the values, in the singular if there is one."""
        return self.value_kind[:-1] if self.form == "one" else self.value_kind


TASKS = {
    "niah_single_1": RulerTask("noise"),
    "niah_single_2": RulerTask("essay"),
    "niah_single_3": RulerTask("essay", value_kind="uuids"),
    "niah_multikey_1": RulerTask("essay", keys=4),
    "niah_multikey_2": RulerTask("needle"),
    "niah_multikey_3": RulerTask("needle", "uuids", "uuids"),
    "niah_multivalue": RulerTask("essay", values=4),
    "niah_multiquery": RulerTask("essay", keys=4, queries=4),
}


@dataclass(frozen=True)
class RulerPrompt:
    """A prompt, the beginning of an answer to it, and the values that the answer must hold."""

    prompt: str
    prefix: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class StringMatchScorer(Scorer):
    """Mean share, in percent, of the expected values in the answer; a reference is a tuple of values."""

    fractions = ()
    name: str = "string_match_all"
    version: str = "NVIDIA/RULER c3f5e3b"
    metrics: tuple[str, ...] = ("score",)

    def count(self, references: Sequence[Sequence[str]], answers: Sequence[str]) -> np.ndarray:
        """[n, 2]: the share, and 1."""
        shares = [
            sum(value.lower() in answer.lower() for value in values) / len(values)
            for values, answer in zip(references, answers, strict=True)
        ]
        return np.array([shares, np.ones(len(shares))]).T

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"score": ratio(sums[..., 0], sums[..., 1]) * 100}


@dataclass(frozen=True)
class PromptBuilder:
    """Draws prompts of one task.

    Attributes:
        essay: Words of prose for the tasks that hide needles in it.
        depths: Percents of the text at which needles are inserted into prose; each is used once.
    """

    task: RulerTask
    essay: tuple[str, ...] = ()
    depths: tuple[int, ...] = tuple(int(depth) for depth in np.round(np.linspace(0, 100, 40)))

    @property
    def smallest(self) -> int:
        """The smallest haystack that has room for the needles."""
        return self.task.keys * self.task.values

    def draw(self, size: int, rng: random.Random) -> RulerPrompt:
        """A prompt with a haystack of `size` words of prose, or lines."""
        task = self.task
        keys = [_draw_text(task.key_kind, rng) for _ in range(task.keys)]
        values = {key: [_draw_text(task.value_kind, rng) for _ in range(task.values)] for key in keys}
        needles = [self._needle(key, value) for key in keys for value in values[key]]
        rng.shuffle(needles)
        insert = self._insert_into_prose if task.haystack == "essay" else self._insert_into_lines
        context = insert(needles, size, rng)
        queried = rng.sample(keys, task.queries)
        query = queried[0] if len(queried) == 1 else ", ".join(queried[:-1]) + ", and " + queried[-1]
        words = {"kind": task.query_kind, "query": query}
        return RulerPrompt(
            TEMPLATES[task.form].format(context=context, **words),
            PREFIXES[task.form].format(**words),
            tuple(value for key in queried for value in values[key]),
        )

    def largest(self, length: int, tokenizer: Tokenizer, seed: str) -> int:
        """The largest haystack with which a prompt, its prefix and the answer fit into `length` tokens.

        Raises:
            InputError: Not even the smallest fits, or there is no prose to hide needles in.
        """
        smallest = self.smallest
        if self.task.haystack == "essay" and len(self.essay) < smallest:
            raise InputError("this task hides needles in prose: give a text as `essay`")

        def fits(size: int) -> bool:
            return _fits(self.draw(size, random.Random(seed)), length, tokenizer)

        if not fits(smallest):
            raise InputError(
                f"length {length} is too short for a question and {ANSWER_TOKENS} tokens of answer"
            )
        low, high = smallest, smallest * 2
        most = len(self.essay) if self.task.haystack == "essay" else length
        while high < most and fits(high):
            low, high = high, high * 2
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.task.value_kind, key=key, value=value)

    def _insert_into_prose(self, needles: Sequence[str], size: int, rng: random.Random) -> str:
        """Needles between sentences of the essay, at different depths."""
        sentences = language.sentences(" ".join(self.essay[:size]))
        positions = sorted(
            int(len(sentences) * depth / 100) for depth in rng.sample(self.depths, len(needles))
        )
        for at, needle in reversed(list(zip(positions, needles, strict=True))):
            sentences.insert(at, needle)
        return " ".join(sentences)

    def _insert_into_lines(self, needles: Sequence[str], size: int, rng: random.Random) -> str:
        """Needles between lines of noise, or among other needles."""
        task = self.task
        lines = [NOISE] * size
        if task.haystack == "needle":
            lines = [
                self._needle(_draw_text(task.key_kind, rng), _draw_text(task.value_kind, rng)) for _ in lines
            ]
        positions = sorted(rng.sample(range(size), len(needles)), reverse=True)
        for at, needle in zip(positions, needles, strict=True):
            lines.insert(at, needle)
        return "\n".join(lines)


def _draw_text(kind: Kind, rng: random.Random) -> str:
    """A key or a value."""
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == "uuids":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    adjectives, nouns = load_wonderwords()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


@cache
def load_wonderwords() -> tuple[list[str], list[str]]:
    """Adjectives and nouns of the wonderwords package, whose lists RULER uses."""
    try:
        assets = resources.files("wonderwords") / "assets"
    except ModuleNotFoundError as error:
        raise InputError("RULER's keys are words of wonderwords: pip install 'regaze[eval]'") from error
    adjectives, nouns = (
        sorted({line.strip() for line in (assets / f"{kind}list.txt").read_text("utf-8").splitlines()} - {""})
        for kind in ("adjective", "noun")
    )
    return adjectives, nouns


@dataclass(frozen=True)
class Ruler(BaseBenchmark):
    """Prompts of needle tasks, a split per task and length.

    With `prefixed` a prompt ends in the beginning of the answer, for base models.
    """

    items: tuple[Item, ...]
    prefixed: bool = False
    name: str = "ruler"
    about: ClassVar[About] = About(
        title="RULER",
        paper="Hsieh et al., COLM 2024, arXiv 2404.06654",
        licence="Apache-2.0; the essays it hides needles in are their author's",
        images="none: text only",
        home="https://github.com/NVIDIA/RULER",
    )

    @classmethod
    def build(
        cls,
        tokenizer: Tokenizer,
        *,
        lengths: Sequence[int] = (4096,),
        tasks: Sequence[str] = tuple(TASKS),
        essay: str = "",
        samples: int = 20,
        seed: int = 42,
        **options: Any,
    ) -> Ruler:
        """Prompts as long as the lengths allow, which include 128 tokens of answer.

        Args:
            tokenizer: The model's tokenizer.
            lengths: Numbers of tokens.
            tasks: Names of `TASKS`.
            essay: Prose to hide needles in; RULER takes essays of P. Graham.
            samples: Number of prompts per task and length; RULER draws 500.

        Raises:
            InputError: Unknown task, no prose for a task that needs it, a length that is too short, or a
                missing library (wonderwords for keys, NLTK for sentences).
        """
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks or samples < 1:
            raise InputError(f"expected samples of {', '.join(TASKS)}; got {samples} of {', '.join(tasks)}")
        items = []
        for task in tasks:
            builder = PromptBuilder(TASKS[task], tuple(essay.split()))
            for length in lengths:
                split = f"{task}/{length}"
                size = builder.largest(length, tokenizer, f"{seed}/{split}")
                for number in range(samples):
                    rng = random.Random(f"{seed}/{split}/{number}")
                    prompt = builder.draw(size, rng)
                    # Longer words than in the draw that `size` was found with need a smaller haystack.
                    while not _fits(prompt, length, tokenizer) and size > builder.smallest:
                        size = max(builder.smallest, int(size * 0.98))
                        prompt = builder.draw(size, rng)
                    items.append(_item(f"{split}/{number}", split, prompt))
        return cls(tuple(items), **options)

    @classmethod
    def load(
        cls, folder: StrPath, *, tasks: Sequence[str] = tuple(TASKS), limit: int | None = None, **options: Any
    ) -> Ruler:
        """The files that RULER's script prepares: <task>/validation.jsonl with input and outputs.

        Raises:
            InputError: None of them exists, or a line is malformed.
        """
        items = []
        folder = Path(folder)
        for task in tasks:
            path = folder / task / "validation.jsonl"
            if os.path.isfile(path):
                for number, (line, record) in enumerate(files.read_records(path)):
                    items.append(_read_prepared(task, number, record, f"{path}:{line}"))
        if not items:
            raise InputError(f"{folder} has no <task>/validation.jsonl of {', '.join(tasks)}")
        return cls(limit_items(items, limit), **options)

    def prompt(self, item: Item) -> str:
        return item.question + item.reference.prefix if self.prefixed else item.question

    def scorers(self) -> Sequence[Scorer]:
        return (StringMatchScorer(),)

    def references(self, items: Sequence[Item]) -> list[Any]:
        return [item.reference.values for item in items]


def _fits(prompt: RulerPrompt, length: int, tokenizer: Tokenizer) -> bool:
    """Whether the prompt, its prefix and an answer fit into `length` tokens."""
    used = len(tokenizer.encode(prompt.prompt + prompt.prefix, add_special_tokens=False))
    return used + ANSWER_TOKENS <= length


def _item(key: str, split: str, prompt: RulerPrompt, source: str = "") -> Item:
    values = ", ".join(prompt.values)
    return Item(key, split, None, prompt.prompt, values, source, prompt, max_new_tokens=ANSWER_TOKENS)


def _read_prepared(task: str, number: int, record: Any, source: str) -> Item:
    """The prompt of a record that RULER's script has prepared."""
    values = files.require_texts(record, "outputs", source)
    if not values or not all(value.strip() for value in values):
        raise InputError(f"{source}: 'outputs' must be a list of texts, got {values!r}")
    prefix = str(record.get("answer_prefix") or record.get("gen_prefix") or "")
    prompt = RulerPrompt(files.require_field(record, "input", str, source), prefix, tuple(values))
    item = _item(f"{task}/{number}", task, prompt, source)
    return replace(item, id=str(record["index"])) if "index" in record else item
