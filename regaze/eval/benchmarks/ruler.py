"""RULER's needle tasks for text models (Hsieh et al., COLM 2024, arXiv 2404.06654).

Eight of its thirteen: numbers, words or uuids to look up in a long text, one needle among noise or prose, one
among other needles, one key with several values, several keys. A score is the share of the wanted values that
the answer holds, whatever the case, in percent.

Samples are drawn here by RULER's rules from a seed of ours, so they are not those of its own script;
`Ruler.load` takes the files that the script prepares.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import language
from regaze.eval.benchmarks.common.base import About, Item, Scored, first
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.eval.benchmarks.niah import Tokens

Kind = Literal["numbers", "words", "uuids"]
Hay = Literal["noise", "essay", "needle"]

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
class Task:
    """What is hidden where: `keys` needles with `values` each, of which `queries` keys are asked for."""

    hay: Hay
    key_kind: Kind = "words"
    value_kind: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1

    @property
    def form(self) -> str:
        return "one" if self.values * self.queries == 1 else "many"

    @property
    def asked_kind(self) -> str:
        return self.value_kind[:-1] if self.form == "one" else self.value_kind


TASKS = {
    "niah_single_1": Task("noise"),
    "niah_single_2": Task("essay"),
    "niah_single_3": Task("essay", value_kind="uuids"),
    "niah_multikey_1": Task("essay", keys=4),
    "niah_multikey_2": Task("needle"),
    "niah_multikey_3": Task("needle", "uuids", "uuids"),
    "niah_multivalue": Task("essay", values=4),
    "niah_multiquery": Task("essay", keys=4, queries=4),
}


@dataclass(frozen=True)
class Sample:
    """A prompt, how an answer to it begins, and the values that the answer must hold."""

    prompt: str
    prefix: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class StringMatch(Scorer):
    """Mean share of the references, a tuple of texts, found in the answer; `any_of` takes one for all."""

    shares = ()
    name: str = "string_match_all"
    version: str = "NVIDIA/RULER c3f5e3b"
    any_of: bool = False
    figures: tuple[str, ...] = ("score",)

    def tally(self, references: Sequence[Sequence[str]], answers: Sequence[str]) -> np.ndarray:
        """[n, 2]: the share, and 1."""
        found = [
            [value.lower() in answer.lower() for value in values]
            for values, answer in zip(references, answers, strict=True)
        ]
        shares = [max(each) if self.any_of else sum(each) / len(each) for each in found]
        return np.array([shares, np.ones(len(shares))]).T

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"score": ratio(sums[..., 0], sums[..., 1]) * 100}


MATCH_ALL = StringMatch()
MATCH_PART = StringMatch("string_match_part", any_of=True)


@dataclass(frozen=True)
class SampleBuilder:
    """Draws samples of one task.

    Attributes:
        essay: words of prose for the tasks that hide needles in it.
        depths: percents of the text at which needles go into prose; each is used once.
    """

    task: Task
    essay: tuple[str, ...] = ()
    depths: tuple[int, ...] = tuple(int(depth) for depth in np.round(np.linspace(0, 100, 40)))

    def sample(self, size: int, rng: random.Random) -> Sample:
        """A sample with `size` pieces of hay: words of prose, or lines."""
        task = self.task
        keys = [_draw(task.key_kind, rng) for _ in range(task.keys)]
        values = {key: [_draw(task.value_kind, rng) for _ in range(task.values)] for key in keys}
        needles = [self._needle(key, value) for key in keys for value in values[key]]
        rng.shuffle(needles)
        context = (
            self._in_prose(needles, size, rng) if task.hay == "essay" else self._in_lines(needles, size, rng)
        )
        asked = rng.sample(keys, task.queries)
        query = asked[0] if len(asked) == 1 else ", ".join(asked[:-1]) + ", and " + asked[-1]
        words = {"kind": task.asked_kind, "query": query}
        return Sample(
            TEMPLATES[task.form].format(context=context, **words),
            PREFIXES[task.form].format(**words),
            tuple(value for key in asked for value in values[key]),
        )

    def largest(self, length: int, tokens: Tokens, seed: str) -> int:
        """How many pieces of hay keep a sample, its prefix and the answer within `length` tokens.

        Raises:
            InputError: not even the fewest do, or there is no prose to hide needles in.
        """
        fewest = self.task.keys * self.task.values
        if self.task.hay == "essay" and len(self.essay) < fewest:
            raise InputError("this task hides needles in prose: give a text as `essay`")

        def fits(size: int) -> bool:
            sample = self.sample(size, random.Random(seed))
            used = len(tokens.encode(sample.prompt + sample.prefix, add_special_tokens=False))
            return used + ANSWER_TOKENS <= length

        if not fits(fewest):
            raise InputError(
                f"length {length} is too short for a question and {ANSWER_TOKENS} tokens of answer"
            )
        low, high = fewest, fewest * 2
        most = len(self.essay) if self.task.hay == "essay" else length
        while high < most and fits(high):
            low, high = high, high * 2
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.task.value_kind, key=key, value=value)

    def _in_prose(self, needles: Sequence[str], size: int, rng: random.Random) -> str:
        """Between sentences, at different depths."""
        sentences = language.sentences(" ".join(self.essay[:size]))
        places = sorted(int(len(sentences) * depth / 100) for depth in rng.sample(self.depths, len(needles)))
        for place, needle in reversed(list(zip(places, needles, strict=True))):
            sentences.insert(place, needle)
        return " ".join(sentences)

    def _in_lines(self, needles: Sequence[str], size: int, rng: random.Random) -> str:
        """Between lines of noise, or among other needles."""
        task = self.task
        lines = [NOISE] * size
        if task.hay == "needle":
            lines = [self._needle(_draw(task.key_kind, rng), _draw(task.value_kind, rng)) for _ in lines]
        places = sorted(rng.sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)


def _draw(kind: Kind, rng: random.Random) -> str:
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == "uuids":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    adjectives, nouns = _words()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


@cache
def _words() -> tuple[list[str], list[str]]:
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
class Ruler(Scored):
    """Samples of needle tasks, a split per task and length; `prefixed` begins the answer, for base models."""

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
        tokens: Tokens,
        *,
        lengths: Sequence[int] = (4096,),
        tasks: Sequence[str] = tuple(TASKS),
        essay: str = "",
        samples: int = 20,
        seed: int = 42,
        **options: Any,
    ) -> Ruler:
        """Samples as long as the lengths allow, which count the prompt and 128 tokens of answer.

        Args:
            tokens: the model's tokenizer. essay: prose to hide needles in; RULER takes essays of P. Graham.
            samples: per task and length; RULER draws 500.

        Raises:
            InputError: an unknown task, no prose where it is needed, a length that is too short, or a library
                that is missing (wonderwords for keys, NLTK for sentences).
        """
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks or samples < 1:
            raise InputError(f"expected samples of {', '.join(TASKS)}; got {samples} of {', '.join(tasks)}")
        items = []
        for task in tasks:
            builder = SampleBuilder(TASKS[task], tuple(essay.split()))
            for length in lengths:
                split = f"{task}/{length}"
                size = builder.largest(length, tokens, f"{seed}/{split}")
                for number in range(samples):
                    # A draw with longer words than the first may need less hay.
                    rng = random.Random(f"{seed}/{split}/{number}")
                    sample = builder.sample(size, rng)
                    while (
                        _too_long(sample, length, tokens) and size > builder.task.keys * builder.task.values
                    ):
                        size = max(builder.task.keys * builder.task.values, int(size * 0.98))
                        sample = builder.sample(size, rng)
                    items.append(_item(f"{split}/{number}", split, sample))
        return cls(tuple(items), **options)

    @classmethod
    def load(
        cls, folder: Path, *, tasks: Sequence[str] = tuple(TASKS), limit: int | None = None, **options: Any
    ) -> Ruler:
        """The files that RULER's script prepares: <task>/validation.jsonl with input and outputs.

        Raises:
            InputError: none of them is there, or a line is malformed.
        """
        items = []
        for task in tasks:
            path = folder / task / "validation.jsonl"
            if path.is_file():
                for number, (line, record) in enumerate(files.read_records(path)):
                    items.append(_prepared(task, number, record, f"{path}:{line}"))
        if not items:
            raise InputError(f"{folder} has no <task>/validation.jsonl of {', '.join(tasks)}")
        return cls(first(items, limit), **options)

    def prompt(self, item: Item) -> str:
        return item.question + item.reference.prefix if self.prefixed else item.question

    def scorers(self) -> Sequence[Scorer]:
        return (ValuesFound(),)


@dataclass(frozen=True)
class ValuesFound(StringMatch):
    """`string_match_all` on the values of a `Sample`."""

    def tally(self, references: Sequence[Sample], answers: Sequence[str]) -> np.ndarray:  # type: ignore[override]
        return super().tally([sample.values for sample in references], answers)


def _too_long(sample: Sample, length: int, tokens: Tokens) -> bool:
    used = len(tokens.encode(sample.prompt + sample.prefix, add_special_tokens=False))
    return used + ANSWER_TOKENS > length


def _item(key: str, split: str, sample: Sample, source: str = "") -> Item:
    values = ", ".join(sample.values)
    return Item(key, split, None, sample.prompt, values, source, sample, max_new_tokens=ANSWER_TOKENS)


def _prepared(task: str, number: int, record: Any, source: str) -> Item:
    values = files.field(record, "outputs", list, source)
    if not values or not all(isinstance(value, str) for value in values):
        raise InputError(f"{source}: 'outputs' must be a list of texts, got {values!r}")
    prefix = str(record.get("answer_prefix") or record.get("gen_prefix") or "")
    sample = Sample(files.field(record, "input", str, source), prefix, tuple(values))
    return _item(f"{task}/{number}", task, sample, source)
