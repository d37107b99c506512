"""MMHal-Bench: open questions that provoke hallucinations (Sun et al., 2023, arXiv 2309.14525).

96 questions, 8 types on 12 topics. A judge that reads a list of the image's contents rates each answer 0 to
6; a rating below 3 counts as a hallucination. Published figures are from GPT-4 of March 2023 with the
official prompt and its five examples; other judges and prompts give other figures.

`official`
    A verdict counts when it has exactly one of "rating: 0" to "rating: 6"; otherwise the rating is 0.
`regaze`
    The same, but verdicts without exactly one rating are left out and counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import files, judges
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, Item, limit_items
from regaze.eval.benchmarks.common.download import github_file
from regaze.eval.benchmarks.common.judged import JudgedBenchmark, JudgePrompt
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.reading import StrPath

#: Types in the order of the questions, which repeats every eight.
TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
FILES = ("mmhal-bench_answer_template.json", "response_template.json")

JUDGE = JudgePrompt(
    "Rate an answer to a question about an image that you cannot see.\n"
    "The image holds: {content}\n"
    "Question: {question}\n"
    "A right answer: {reference}\n"
    "Answer to rate: {answer}\n"
    "An answer hallucinates when it claims what is not in the image. Say in a few words what is right "
    'and wrong about the answer. Then end with "Rating: n", where n is 6 for right, detailed and free of '
    "hallucination, 5 for right with some detail, 4 for right and short, 3 for true but no answer to the "
    "question, 2 for a hallucination beside some detail, 1 for a hallucination with little else, 0 for "
    "nothing but hallucination.",
    "regaze 1",
)
_PLACEHOLDERS = ("content", "question", "reference", "answer")


@dataclass(frozen=True)
class RatingScorer(Scorer):
    """Mean rating, share below 3, and mean rating per type; references are types, "answers" are verdicts.

    Attributes:
        default: Rating of a verdict without exactly one rating; None leaves it out.
    """

    fractions = ("hallucination_rate", "unreadable")
    lower_is_better = ("hallucination_rate", "unreadable")
    name: str
    version: str
    default: int | None
    metrics: tuple[str, ...] = ("rating", "hallucination_rate", "unreadable", *TYPES)

    def count(self, references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """[n, types, 4]: rating, below 3, counted, unreadable."""
        counts = np.zeros((len(answers), len(TYPES), 4))
        for row, reference, verdict in zip(counts, references, answers, strict=True):
            rating = read_rating(verdict)
            value = self.default if rating is None else rating
            column = TYPES.index(reference)
            row[column, 3] = rating is None
            if value is not None:
                row[column, :3] = value, value < 3, 1
        return counts

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        rating, hallucinated, counted, unreadable = np.moveaxis(sums.sum(-2), -1, 0)
        verdicts = counted if self.default is not None else counted + unreadable
        by_type = ratio(sums[..., 0], sums[..., 2])
        return {
            "rating": ratio(rating, counted),
            "hallucination_rate": ratio(hallucinated, counted),
            "unreadable": ratio(unreadable, verdicts),
            **dict(zip(TYPES, np.moveaxis(by_type, -1, 0), strict=True)),
        }


def read_rating(verdict: str) -> int | None:
    """The rating 0 to 6 of a verdict, None if it has none or several."""
    found = [rating for rating in range(7) if f"rating: {rating}" in verdict.lower()]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class MmHal(JudgedBenchmark):
    """The 96 questions; an item's reference is its record."""

    items: tuple[Item, ...]
    judge: judges.Judge | None = None
    judge_prompt: JudgePrompt = JUDGE
    suffix: str = ""
    name: str = "mmhal"
    about: ClassVar[About] = About(
        title="MMHal-Bench",
        paper="Sun et al., 2023, arXiv 2309.14525",
        licence="Apache-2.0 by its data card (the official scorer is GPL-3: none of it is here)",
        images="OpenImages photographs on Flickr (CC BY 2.0), by URL or from the hub",
        home="https://huggingface.co/datasets/Shengcao1006/MMHal-Bench",
        hub="Shengcao1006/MMHal-Bench",
        files=(
            github_file(
                "RLHF-V/RLHF-V",
                "8daac8a8f30df123818ae9d3a0e3f0018497714c",
                "eval/data/mmhal-bench_answer_template.json",
                "28ed24e19ffef292597c35f1dad37760b2e0a088b3b40ca3b50f105fc1b951bb",
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
        prompt: StrPath | None = None,
        limit: int | None = None,
    ) -> MmHal:
        """The questions in `folder`; images in `images` (`folder`/images), named by id or as in their URL.

        Args:
            prompt: A file with the judge's prompt: {content}, {question}, {reference}, {answer}.

        Raises:
            InputError: There is no judge, or a file is missing or malformed.
        """
        folder, image_folder = files.folders_of(folder, images, "images")
        path = files.find_file(folder, *FILES)
        items = []
        for number, (line, record) in enumerate(files.read_records(path)):
            source = f"{path}:{line}"
            url, image_id = (
                files.require_field(record, key, str, source) for key in ("image_src", "image_id")
            )
            by_id, by_url = image_folder / f"{image_id}.jpg", image_folder / url.rsplit("/", 1)[-1]
            image = by_id if os.path.isfile(by_id) or not os.path.isfile(by_url) else by_url
            items.append(_item(number, record, image, source))
        judge_prompt = JudgePrompt.from_file(prompt, _PLACEHOLDERS) if prompt else JUDGE
        return cls(limit_items(items, limit), judge, judge_prompt)

    @classmethod
    def from_hub(cls, *, judge: judges.Judge | None = None, limit: int | None = None) -> MmHal:
        """From the hub's copy."""
        rows = enumerate(hub.read_rows(cls.about.hub, split="test"))
        items = [_item(number, row.values, row.image, row.source) for number, row in rows]
        return cls(limit_items(items, limit), judge)

    def verdicts(self, answers: Sequence[str]) -> list[str]:
        prompts = [
            self.judge_prompt.fill(
                content=", ".join(item.reference["image_content"]),
                question=item.question,
                reference=item.label,
                answer=answer,
            )
            for item, answer in zip(self.items, answers, strict=True)
        ]
        return self.require_judge().judge(prompts)

    def references(self, items: Sequence[Item]) -> list[Any]:
        return [item.reference["question_type"] for item in items]

    def scorers(self) -> Sequence[Scorer]:
        prompt = f"prompt {self.judge_prompt.name}"
        return (
            RatingScorer("official", f"LLaVA-RLHF eval_gpt4.py, {prompt}", 0),
            RatingScorer("regaze", f"1, {prompt}", None),
        )

    def groups(self) -> dict[str, list[int]]:
        """One group, with a metric per type."""
        return {"all": list(range(len(self.items)))}


def _item(number: int, record: Any, image: Path | None, source: str) -> Item:
    kind = files.require_field(record, "question_type", str, source)
    files.require_texts(record, "image_content", source)
    if kind not in TYPES:
        raise InputError(f"{source}: unknown question_type {kind!r}")
    question, answer = (files.require_field(record, key, str, source) for key in ("question", "gt_answer"))
    return Item(str(number), kind, image, question, answer, source, record)
