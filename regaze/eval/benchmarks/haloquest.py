"""HaloQuest: questions that provoke hallucinations (Wang et al., ECCV 2024, arXiv 2407.15680).

608 questions on 391 generated and 217 real pictures, of three kinds: a false premise, something hard to see,
too little to go on. Each has 1 to 5 reference answers, and a judge says whether an answer agrees with them.
Published figures are from Gemini Pro with the authors' prompt. Where the thing asked about is not there, a
bare "yes", "no" or "nothing" is wrong to the judge, and so is a refusal.

`official`
    The share of answers judged right. The authors' script stops at a verdict that is neither true nor false:
    undefined then.
`regaze`
    The same share of the verdicts that can be read; the others are left out and counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np

from regaze.errors import InputError
from regaze.eval import files, judges
from regaze.eval.benchmarks.common.base import About, Item, limit_items
from regaze.eval.benchmarks.common.download import github_file
from regaze.eval.benchmarks.common.judged import JudgedBenchmark, JudgePrompt
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.reading import StrPath

FILE = "haloquest-eval.csv"
TYPES = ("false premises", "visual challenge", "insufficient context")
IMAGE_TYPES = ("generated", "real")
_COLUMNS = ("", "image_name", "url", "image type", "hallucination type", "question", "groundtruth responses")

JUDGE = JudgePrompt(
    "Decide whether an answer to a question about a picture is right. You cannot see the picture.\n"
    "Question: {question}\n"
    "Right answers, separated by semicolons: {references}\n"
    "Answer to judge: {answer}\n"
    "Read the answer as one to this question. Where the right answers say that the thing asked about is not "
    "there or cannot be known, an answer must say so, too: a bare yes, no or nothing takes the thing for "
    "granted and is wrong. An answer that declines to help is wrong. A number must be exactly the right one. "
    "Write in a few words what both say, then a last line with nothing but a JSON object: "
    '{"correct": true} or {"correct": false}.',
    "regaze 1",
)
_PLACEHOLDERS = ("question", "references", "answer")
# Also what the authors' schema makes of a verdict: is_prediction_correct=True.
_VERDICT = re.compile(r"correct[\"'*`]*\s*[:=]\s*[\"'*`]*(true|false)\b", re.IGNORECASE)


def read_verdict(verdict: str) -> bool | None:
    """Whether the judge calls the answer right; None where it says neither, or both."""
    found = {match.lower() for match in _VERDICT.findall(verdict)} or {verdict.strip().strip(".").lower()}
    return found == {"true"} if len(found) == 1 and found <= {"true", "false"} else None


@dataclass(frozen=True)
class VerdictScorer(Scorer):
    """The share of right answers; "answers" are a judge's verdicts.

    Attributes:
        stops: One verdict that cannot be read leaves everything undefined; otherwise it is left out.
    """

    lower_is_better = ("unreadable",)
    name: str
    version: str
    stops: bool
    metrics: tuple[str, ...] = ("accuracy", "unreadable")

    def count(self, references: Sequence[Any], answers: Sequence[str]) -> np.ndarray:
        """[n, 3]: right, readable, 1."""
        verdicts = [read_verdict(each) for each in answers]
        return np.array([(verdict is True, verdict is not None, 1) for verdict in verdicts], np.int64)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        right, readable, verdicts = np.moveaxis(sums, -1, 0)
        counted = np.where(readable < verdicts, 0, readable) if self.stops else readable
        return {"accuracy": ratio(right, counted), "unreadable": 1 - ratio(readable, verdicts)}

    def correct(self, counts: np.ndarray) -> np.ndarray:
        return counts[:, 0] > 0


@dataclass(frozen=True)
class HaloQuest(JudgedBenchmark):
    """The 608 questions, a split per kind; an item's reference is the type of its picture."""

    items: tuple[Item, ...]
    judge: judges.Judge | None = None
    judge_prompt: JudgePrompt = JUDGE
    suffix: str = ""
    name: str = "haloquest"
    about: ClassVar[About] = About(
        title="HaloQuest",
        paper="Wang et al., ECCV 2024, arXiv 2407.15680",
        licence="CC BY 4.0",
        images="by URL in the file: Open Images photographs on Flickr, generated pictures in the authors' "
        "private buckets; a licence each, none is downloaded here",
        home="https://github.com/google/haloquest",
        files=(
            github_file(
                "google/haloquest",
                "2f643ebb77aeae40f4c5323db38f99f0dc257cf5",
                FILE,
                "6c88c8d6eb6d0a98881ec3e50ae52b5919247b53a47b7c723819603621b838b4",
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
    ) -> HaloQuest:
        """haloquest-eval.csv in `folder`, pictures in `images` (`folder`/images).

        Pictures are named as in the file or as in their URL. Nothing is downloaded: the file says from where
        they can be had.

        Args:
            prompt: A file with the judge's prompt: {question}, {references}, {answer}.
            limit: Questions of each kind.

        Raises:
            InputError: There is no judge, or the file is missing or malformed.
        """
        folder, image_folder = files.folders_of(folder, images, "images")
        path = files.find_file(folder, FILE)
        items = [_item(row, image_folder, f"{path}:{line}") for line, row in files.read_table(path, _COLUMNS)]
        judge_prompt = JudgePrompt.from_file(prompt, _PLACEHOLDERS) if prompt else JUDGE
        return cls(limit_items(items, limit), judge, judge_prompt)

    def verdicts(self, answers: Sequence[str]) -> list[str]:
        prompts = [
            self.judge_prompt.fill(question=item.question, references=item.label, answer=answer)
            for item, answer in zip(self.items, answers, strict=True)
        ]
        return self.require_judge().judge(prompts)

    def scorers(self) -> Sequence[Scorer]:
        prompt = f"prompt {self.judge_prompt.name}"
        return (
            VerdictScorer("official", f"google/haloquest 2f643eb, {prompt}", stops=True),
            VerdictScorer("regaze", f"1, {prompt}", stops=False),
        )

    def groups(self) -> dict[str, list[int]]:
        """The kinds of questions, the types of pictures, and all, as in the published table."""
        groups = super().groups()
        for kind in IMAGE_TYPES:
            if rows := [index for index, item in enumerate(self.items) if item.reference == kind]:
                groups[f"{kind} pictures"] = rows
        return groups


def _item(row: Mapping[str, str], image_folder: Path, source: str) -> Item:
    name, url, image_type, kind = (row[column].strip() for column in _COLUMNS[1:5])
    references = [text.strip() for text in row["groundtruth responses"].split(";") if text.strip()]
    if image_type not in IMAGE_TYPES or kind not in TYPES:
        raise InputError(
            f"{source}: image type {image_type!r} and hallucination type {kind!r}; there are "
            f"{', '.join(IMAGE_TYPES)}, and {', '.join(TYPES)}"
        )
    if not (name and row["question"].strip() and references and row[""].strip()):
        raise InputError(f"{source}: expected a number, an image_name, a question and groundtruth responses")
    by_name, by_url = image_folder / name, image_folder / unquote(url.rsplit("/", 1)[-1] or name)
    image = by_name if os.path.isfile(by_name) or not os.path.isfile(by_url) else by_url
    question, label, key = row["question"].strip(), "; ".join(references), row[""].strip()
    return Item(key, kind, image, question, label, source, image_type, id=key)
