"""LLaVA-Bench (in the wild): answers relative to GPT-4's (Liu et al., NeurIPS 2023, arXiv 2304.08485).

60 questions on 24 images. A judge reads a description of the image, the question, the answer of text-only
GPT-4 and the model's answer, and gives each answer a score 1 to 10 on the first line of its verdict. Papers
report `relative`: 100 times the model's mean score divided by GPT-4's. It depends on the judge: 65.4 for
LLaVA-1.5-7B is from GPT-4 of early 2023.

`official`
    The first line, with commas as spaces, must be two numbers with one space between; otherwise -1 and -1
    enter the means (LLaVA and VLMEvalKit).
`lmms-eval`
    The first two numbers of the first line; otherwise -1 and -1.
`regaze`
    Two numbers and nothing else on the first line; other verdicts are left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import files, judges
from regaze.eval.benchmarks.common.base import About, Item, limit_items
from regaze.eval.benchmarks.common.download import github_file, hub_file
from regaze.eval.benchmarks.common.judged import JudgedBenchmark, JudgePrompt
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.reading import StrPath

CATEGORIES = ("conv", "detail", "complex")
QUESTIONS, CONTEXT, REFERENCE = "questions.jsonl", "context.jsonl", "answers_gpt4.jsonl"

JUDGE = JudgePrompt(
    "An image is described as follows:\n"
    "{context}\n"
    "\n"
    "Question: {question}\n"
    "\n"
    "Answer 1:\n"
    "{first}\n"
    "\n"
    "Answer 2:\n"
    "{second}\n"
    "\n"
    "Judge how helpful, relevant, accurate and detailed each answer is, whatever their order, with a "
    "score from 1 to 10 each. Write the score of answer 1, a space and the score of answer 2 on the "
    "first line and nothing else there, then your reasons.",
    "regaze 1",
)
# The official prompt is this frame around the rule of the question's category.
_FRAME = (
    "[Context]\n{context}\n\n[Question]\n{question}\n\n[ROLE 1]\n{first}\n\n[End of ROLE 1]\n\n"
    "[ROLE 2]\n{second}\n\n[End of ROLE 2]\n\n[System]\nRULE\n\n"
)

#: (score of the reference, score of the model)
ScorePair = tuple[float, float]


def read_official(verdict: str) -> ScorePair | None:
    """The two scores as LLaVA's script reads them."""
    words = verdict.split("\n")[0].replace(",", " ").split(" ")
    try:
        return (float(words[0]), float(words[1])) if len(words) == 2 else None
    except ValueError:
        return None


def read_lmms_eval(verdict: str) -> ScorePair | None:
    """The two scores as lmms-eval reads them."""
    found = re.findall(r"-?\d+(?:\.\d+)?", verdict.strip().split("\n")[0])
    return (float(found[0]), float(found[1])) if len(found) > 1 else None


def read_two_scores(verdict: str) -> ScorePair | None:
    """Two scores 1 to 10 with any separator, and nothing else on the first line."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)[\s,;/]+(\d+(?:\.\d+)?)\s*", verdict.strip().split("\n")[0])
    pair = (float(found[1]), float(found[2])) if found else None
    return pair if pair and all(1 <= score <= 10 for score in pair) else None


@dataclass(frozen=True)
class RelativeScorer(Scorer):
    """The model's mean score relative to the reference's; "answers" are verdicts.

    Attributes:
        read: Reads the two scores of a verdict.
        minus_one: Unreadable verdicts enter the means as -1 and -1; otherwise they are left out.
    """

    fractions = ("unreadable",)
    name: str
    version: str
    read: Callable[[str], ScorePair | None]
    minus_one: bool
    metrics: tuple[str, ...] = ("relative", "reference", "model", "unreadable")

    def count(self, references: Sequence[Any], answers: Sequence[str]) -> np.ndarray:
        """[n, 5]: score of the reference, score of the model, counted, unreadable, 1."""
        rows = []
        for verdict in answers:
            pair = self.read(verdict)
            counted = pair if pair is not None else ((-1.0, -1.0) if self.minus_one else None)
            rows.append((*(counted or (0.0, 0.0)), counted is not None, pair is None, 1))
        return np.array(rows, dtype=np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        reference, model, counted, unreadable, verdicts = np.moveaxis(sums, -1, 0)
        return {
            "relative": 100 * ratio(model, reference),
            "reference": 10 * ratio(reference, counted),
            "model": 10 * ratio(model, counted),
            "unreadable": ratio(unreadable, verdicts),
        }


@dataclass(frozen=True)
class LlavaBench(JudgedBenchmark):
    """The 60 questions, a split per category.

    Attributes:
        prompts: (category, the judge's prompt) pairs; ours for a category without one.
    """

    items: tuple[Item, ...]
    judge: judges.Judge | None = None
    prompts: tuple[tuple[str, JudgePrompt], ...] = ()
    suffix: str = ""
    name: str = "llava-bench"
    about: ClassVar[About] = About(
        title="LLaVA-Bench (in the wild)",
        paper="Liu et al., NeurIPS 2023, arXiv 2304.08485",
        licence="Apache-2.0 by its data card; the reference answers are GPT-4's",
        images="24 pictures collected by the authors, in the data set's repository on the hub",
        home="https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
        hub="liuhaotian/llava-bench-in-the-wild",
        files=(
            *(
                hub_file("liuhaotian/llava-bench-in-the-wild", name)
                for name in (QUESTIONS, CONTEXT, REFERENCE)
            ),
            github_file(
                "haotian-liu/LLaVA",
                "c121f0432da27facab705f978f83c4ada465e46f",
                "llava/eval/table/rule.json",
                None,
            ),
        ),
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        judge: judges.Judge | None = None,
        rules: StrPath | None = None,
        limit: int | None = None,
    ) -> LlavaBench:
        """The official files in `folder`, images in `images` (`folder`/images).

        Args:
            rules: LLaVA's rule.json, for the official prompts; ours by default, even if `folder` has that
                file.

        Raises:
            InputError: There is no judge, a file is missing or malformed, or a question lacks context or
                reference.
        """
        folder, image_folder = files.folders_of(folder, images, "images")
        contexts = _read_mapping(files.find_file(folder, CONTEXT), "image", "caption", _caption)
        answers = _read_mapping(files.find_file(folder, REFERENCE), "question_id", "text", _reference)
        path = files.find_file(folder, QUESTIONS)
        items = []
        for line, record in files.read_records(path):
            source = f"{path}:{line}"
            key = str(files.require_field(record, "question_id", (int, str), source))
            image = files.require_field(record, "image", str, source)
            category = files.require_field(record, "category", str, source)
            if category not in CATEGORIES or image not in contexts or key not in answers:
                raise InputError(
                    f"{source}: unknown category, no context of {image}, or no reference of {key}"
                )
            question = files.require_field(record, "text", str, source)
            items.append(
                Item(
                    key,
                    category,
                    image_folder / image,
                    question,
                    "",
                    source,
                    (contexts[image], answers[key]),
                    id=key,
                )
            )
        return cls(limit_items(items, limit), judge, official_prompts(rules) if rules else ())

    def verdicts(self, answers: Sequence[str]) -> list[str]:
        by_category = dict(self.prompts)
        prompts = [
            by_category.get(item.split, JUDGE).fill(
                context=item.reference[0], question=item.question, first=item.reference[1], second=answer
            )
            for item, answer in zip(self.items, answers, strict=True)
        ]
        return self.require_judge().judge(prompts)

    def scorers(self) -> Sequence[Scorer]:
        prompt = f"prompt {self.prompts[0][1].name if self.prompts else JUDGE.name}"
        return (
            RelativeScorer("official", f"haotian-liu/LLaVA c121f04, {prompt}", read_official, minus_one=True),
            RelativeScorer("lmms-eval", f"lmms-eval 75571cf, {prompt}", read_lmms_eval, minus_one=True),
            RelativeScorer("regaze", f"1, {prompt}", read_two_scores, minus_one=False),
        )


def official_prompts(path: StrPath) -> tuple[tuple[str, JudgePrompt], ...]:
    """(category, prompt) pairs of LLaVA's rule.json. Raises InputError if one is missing."""
    path = Path(path)
    rules = files.read_json(path)
    prompts = []
    for category in CATEGORIES:
        rule = files.require_field(rules, f"llava_bench_{category}", dict, str(path))
        prompt, role = (files.require_field(rule, key, str, str(path)) for key in ("prompt", "role"))
        text = _FRAME.replace("ROLE", role).replace("RULE", prompt)
        prompts.append((category, JudgePrompt(text, f"{Path(path).name} {files.sha256(path)[:8]}")))
    return tuple(prompts)


def _read_mapping(path: Path, key: str, value: str, read: Callable[[Any, str, str], str]) -> dict[str, str]:
    """{field `key`: what `read` makes of the field `value`} of the records of a file."""
    mapping = {}
    for line, record in files.read_records(path):
        source = f"{path}:{line}"
        name = str(files.require_field(record, key, (int, str), source))
        if name in mapping:
            raise InputError(f"{source}: a second line with {key} {name!r}")
        mapping[name] = read(record, value, source)
    return mapping


def _caption(record: Any, key: str, source: str) -> str:
    """A text, or several, a line each."""
    if isinstance(record, dict) and isinstance(record.get(key), list):
        return "\n".join(files.require_texts(record, key, source))
    return _reference(record, key, source)


def _reference(record: Any, key: str, source: str) -> str:
    text: str = files.require_field(record, key, str, source)
    return text
