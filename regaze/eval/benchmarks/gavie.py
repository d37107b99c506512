"""GAVIE: relevancy and accuracy of answers about photographs (Liu et al., ICLR 2024, arXiv 2306.14565).

1,000 instructions on Visual Genome images. A judge reads the image's region descriptions with their boxes and
rates the answer 0 to 10, once for following the instruction and once for being true of the image. The authors
left open how a verdict is read: here as "Relevancy: n" and "Accuracy: n". Verdicts that lack one are counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import files, judges
from regaze.eval.benchmarks.common.base import About, Item, limit_items
from regaze.eval.benchmarks.common.download import github_file
from regaze.eval.benchmarks.common.judged import JudgedBenchmark, JudgePrompt
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.reading import StrPath

FILE, REGIONS = "evaluation_set.json", "vg_annotation.json"

JUDGE = JudgePrompt(
    "What is in an image, each with the left upper corner and the size of its box in pixels:\n"
    "{regions}\n"
    "\n"
    "Instruction: {question}\n"
    "Answer: {answer}\n"
    "\n"
    "Rate the answer twice from 0 to 10: relevancy, whether it does what the instruction asks for, and "
    'accuracy, whether it is true of the image. Write two lines, "Relevancy: n" and "Accuracy: n", then '
    "your reasons.",
    "regaze 1",
)
_PLACEHOLDERS = ("regions", "question", "answer")


def read_scores(verdict: str) -> tuple[float, float] | None:
    """(relevancy, accuracy) of a verdict, None if it lacks one of them or one is above 10."""
    matches = [
        re.search(rf"{name}\D*?(\d+(?:\.\d+)?)", verdict, re.IGNORECASE) for name in ("relevancy", "accuracy")
    ]
    if any(match is None for match in matches):
        return None
    relevancy, accuracy = (float(match[1]) for match in matches if match)
    return (relevancy, accuracy) if max(relevancy, accuracy) <= 10 else None


@dataclass(frozen=True)
class GavieScorer(Scorer):
    """Mean relevancy and accuracy of the readable verdicts; "answers" are verdicts."""

    fractions = ("unreadable",)
    name: str = "judge"
    version: str = "after FuxiaoLiu/LRV-Instruction 0a5ab53"
    metrics: tuple[str, ...] = ("accuracy", "relevancy", "unreadable")

    def count(self, references: Sequence[Any], answers: Sequence[str]) -> np.ndarray:
        """[n, 4]: accuracy, relevancy, readable, 1."""
        scores = [read_scores(verdict) for verdict in answers]
        return np.array([(each[1], each[0], 1, 1) if each else (0, 0, 0, 1) for each in scores], np.float64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        accuracy, relevancy, readable, verdicts = np.moveaxis(sums, -1, 0)
        return {
            "accuracy": ratio(accuracy, readable),
            "relevancy": ratio(relevancy, readable),
            "unreadable": 1 - ratio(readable, verdicts),
        }


@dataclass(frozen=True)
class Gavie(JudgedBenchmark):
    """The 1,000 instructions; an item's reference is a text with a line per region of its image."""

    items: tuple[Item, ...]
    judge: judges.Judge | None = None
    judge_prompt: JudgePrompt = JUDGE
    suffix: str = ""
    name: str = "gavie"
    about: ClassVar[About] = About(
        title="GAVIE",
        paper="Liu et al., ICLR 2024, arXiv 2306.14565",
        licence="BSD 3-Clause; region descriptions: Visual Genome, CC BY 4.0",
        images="Visual Genome (YFCC100M and COCO photographs), visualgenome.org",
        home="https://github.com/FuxiaoLiu/LRV-Instruction",
        files=(
            github_file(
                "FuxiaoLiu/LRV-Instruction",
                "0a5ab538ed96c3e0c9835b5fe02cc8f7fa0bf8fa",
                f"Evaluation/{FILE}",
                "86d54d1478b22d7a143b8ad7b6ba7d7a397e40d9f6c4ca7768c2107ce2733dc6",
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
        as_published: bool = False,
        prompt: StrPath | None = None,
        limit: int | None = None,
    ) -> Gavie:
        """evaluation_set.json and vg_annotation.json in `folder`, images as <image id>.jpg in `images`.

        Args:
            images: Folder of the images; `folder`/images by default.
            as_published: Give the judge a box's width in place of its height, as the published script does.
            prompt: A file with the judge's prompt: {regions}, {question}, {answer}.

        Raises:
            InputError: There is no judge, a file is missing or malformed, or an image has no regions.
        """
        folder, image_folder = files.folders_of(folder, images, "images")
        annotations = files.find_file(folder, REGIONS)
        regions = files.read_json(annotations)
        path = files.find_file(folder, FILE)
        items = []
        for number, (line, record) in enumerate(files.read_records(path)):
            source = f"{path}:{line}"
            image_id = str(files.require_field(record, "image_id", (str, int), source))
            boxes = files.require_field(regions, image_id, list, f"{source}: {annotations}")
            lines = "\n".join(_region(each, as_published, f"{annotations}: {image_id}") for each in boxes)
            question = files.require_field(record, "question", str, source)
            image = image_folder / f"{image_id}.jpg"
            items.append(Item(str(number), "gavie", image, question, "", source, lines))
        judge_prompt = JudgePrompt.from_file(prompt, _PLACEHOLDERS) if prompt else JUDGE
        return cls(limit_items(items, limit), judge, judge_prompt)

    def verdicts(self, answers: Sequence[str]) -> list[str]:
        prompts = [
            self.judge_prompt.fill(regions=item.reference, question=item.question, answer=answer)
            for item, answer in zip(self.items, answers, strict=True)
        ]
        return self.require_judge().judge(prompts)

    def scorers(self) -> Sequence[Scorer]:
        return (GavieScorer(version=f"{GavieScorer.version}, prompt {self.judge_prompt.name}"),)


def _region(region: Mapping[str, Any], as_published: bool, source: str) -> str:
    """A region's description and box as one line."""
    caption, box = (
        files.require_field(region, key, kind, source) for key, kind in (("caption", str), ("bbox", list))
    )
    if len(box) != 4:
        raise InputError(f"{source}: 'bbox' must be [x, y, width, height], got {box!r}")
    height = box[2] if as_published else box[3]
    return f"{caption} X:{box[0]} Y:{box[1]} Width:{box[2]} Height:{height}"
