"""MM-Vet: open questions that take several capabilities at once (Yu et al., ICML 2024, arXiv 2308.02490).

218 questions. A judge gives each answer a score between 0 and 1. Figures, in percent, are per core capability
(`rec`, `ocr`, `know`, `gen`, `spat`, `math`; a question counts for each of its own), per combination of
capabilities (`ocr+spat`, `rec alone`) and of all. Published figures are from gpt-4-0613 with the authors'
prompt and its seven worked examples, often a mean of five runs.

`official`
    A score is the text before the first space, if it is a number between 0 and 1. Otherwise the judge is
    asked again with one more line, and at last the score is 0. The script raises the temperature from try to
    try; judges here do not vary, so there are two tries.
`regaze`
    The first of the two replies with exactly one number between 0 and 1; else the answer is left out and
    counted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import files, judges
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, Item, limit_items
from regaze.eval.benchmarks.common.judged import JudgedBenchmark, JudgePrompt
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.reading import StrPath

FILE = "mm-vet.json"
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")

JUDGE = JudgePrompt(
    "Score how far an answer to a question about a picture is right, from 0.0 (not at all) over 0.1, 0.2 and "
    "so on to 1.0 (entirely). In the right answer, <AND> joins parts that must all be given, for the whole "
    "score, and <OR> joins parts of which one is enough.\n"
    "Question: {question}\n"
    "Right answer: {reference}\n"
    "Answer to score: {answer}\n"
    "Write the number and nothing else.",
    "regaze 1",
)
_PLACEHOLDERS = ("question", "reference", "answer")
#: What the second try adds to the prompt.
AGAIN = "\nWrite the score as a number between 0 and 1: "


def read_official(reply: str) -> float | None:
    """The score as the official script reads it; "nan" passes."""
    try:
        score = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return None if score > 1 or score < 0 else score


def read_score(reply: str) -> float | None:
    """The only number in a reply, if it is between 0 and 1."""
    found = re.findall(r"-?\d+(?:\.\d+)?", reply)
    score = float(found[0]) if len(found) == 1 else math.nan
    return score if 0 <= score <= 1 else None


@dataclass(frozen=True)
class ScoreScorer(Scorer):
    """Mean score in percent; "answers" are tuples of a judge's replies, in the order of the tries.

    Attributes:
        read: Reads the score of a reply.
        zero: A score that cannot be read is 0; otherwise it is left out.
    """

    fractions = ("unreadable",)
    lower_is_better = ("unreadable",)
    name: str
    version: str
    read: Callable[[str], float | None]
    zero: bool
    metrics: tuple[str, ...] = ("score", "unreadable")

    def count(self, references: Sequence[Any], answers: Sequence[tuple[str, ...]]) -> np.ndarray:
        """[n, 3]: score, readable, 1."""
        scores = [next((s for s in map(self.read, tries) if s is not None), None) for tries in answers]
        return np.array([(score or 0.0, score is not None, 1) for score in scores], np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        score, readable, answers = np.moveaxis(sums, -1, 0)
        counted = answers if self.zero else readable
        return {"score": 100 * ratio(score, counted), "unreadable": 1 - ratio(readable, answers)}


@dataclass(frozen=True)
class MmVet(JudgedBenchmark):
    """The 218 questions; an item's reference are its capabilities."""

    items: tuple[Item, ...]
    judge: judges.Judge | None = None
    judge_prompt: JudgePrompt = JUDGE
    suffix: str = ""
    name: str = "mm-vet"
    about: ClassVar[About] = About(
        title="MM-Vet",
        paper="Yu et al., ICML 2024, arXiv 2308.02490",
        licence="CC BY-NC 4.0",
        images="200 pictures from the web, VCR and ChestX-ray14, in the authors' zip file; a licence each",
        home="https://github.com/yuweihao/MM-Vet",
        hub="lmms-lab/MMVet",
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        judge: judges.Judge | None = None,
        prompt: StrPath | None = None,
        limit: int | None = None,
    ) -> MmVet:
        """mm-vet.json in `folder`, pictures as it names them in `images` (`folder`/images).

        Args:
            prompt: A file with the judge's prompt: {question}, {reference}, {answer}.

        Raises:
            InputError: There is no judge, or the file is missing or malformed.
        """
        folder, image_folder = files.folders_of(folder, images, "images")
        path = files.find_file(folder, FILE)
        data = files.read_json(path)
        if not isinstance(data, dict) or not data:
            raise InputError(f"{path}: expected an object that maps ids to questions")
        items = []
        for key, record in data.items():
            source = f"{path}: {key}"
            image = image_folder / files.require_field(record, "imagename", str, source)
            items.append(_item(key, record, image, source))
        judge_prompt = JudgePrompt.from_file(prompt, _PLACEHOLDERS) if prompt else JUDGE
        return cls(limit_items(items, limit), judge, judge_prompt)

    @classmethod
    def from_hub(
        cls, *, judge: judges.Judge | None = None, prompt: StrPath | None = None, limit: int | None = None
    ) -> MmVet:
        """From the copy that lmms-eval takes."""
        items = []
        for row in hub.read_rows(cls.about.hub, split="test", limit=limit):
            key = files.require_field(row.values, "question_id", str, row.source)
            items.append(_item(key, row.values, row.image, row.source))
        judge_prompt = JudgePrompt.from_file(prompt, _PLACEHOLDERS) if prompt else JUDGE
        return cls(limit_items(items, limit), judge, judge_prompt)

    def verdicts(self, answers: Sequence[str]) -> list[tuple[str, ...]]:
        """The judge's replies: the first, and a second where a scorer cannot read it."""
        prompts = [
            self.judge_prompt.fill(
                question=item.question,
                reference=item.label.replace("<AND>", " <AND> ").replace("<OR>", " <OR> "),
                answer=answer,
            )
            for item, answer in zip(self.items, answers, strict=True)
        ]
        judge = self.require_judge()
        first = judge.judge(prompts)
        unread = [
            index for index, reply in enumerate(first) if None in (read_official(reply), read_score(reply))
        ]
        second = dict(zip(unread, judge.judge([prompts[index] + AGAIN for index in unread]), strict=True))
        return [(reply, *([second[i]] if i in second else [])) for i, reply in enumerate(first)]

    def scorers(self) -> Sequence[Scorer]:
        prompt = f"prompt {self.judge_prompt.name}"
        return (
            ScoreScorer(
                "official", f"yuweihao/MM-Vet acde843, two tries, {prompt}", read_official, zero=True
            ),
            ScoreScorer("regaze", f"1, {prompt}", read_score, zero=False),
        )

    def groups(self) -> dict[str, list[int]]:
        """All, the core capabilities, and their combinations, the more frequent ones first."""
        groups = {"all": list(range(len(self.items)))}
        single = Counter(name for item in self.items for name in item.reference)
        for name, _ in single.most_common():
            groups[name] = [i for i, item in enumerate(self.items) if name in item.reference]
        combined = Counter(item.split for item in self.items)
        for name, _ in combined.most_common():
            groups[name] = [i for i, item in enumerate(self.items) if item.split == name]
        return groups


def _item(key: str, record: Any, image: Path | None, source: str) -> Item:
    question, answer = (files.require_field(record, name, str, source) for name in ("question", "answer"))
    if isinstance(record.get("capability"), str):  # the hub's copy
        named = [name.strip() for name in record["capability"].split(",")]
    else:
        named = files.require_texts(record, "capability", source)
    if not named or not set(named) <= set(CAPABILITIES):
        raise InputError(f"{source}: 'capability' must list some of {', '.join(CAPABILITIES)}, got {named!r}")
    own = tuple(name for name in CAPABILITIES if name in named)
    combination = "+".join(own) if len(own) > 1 else f"{own[0]} alone"
    return Item(key, combination, image, question, answer, source, own, id=key)
