"""TextVQA: questions about text in photographs (Singh et al., CVPR 2019, arXiv 1904.08920).

A control, not a test of hallucination: an edit of the attention must not stop the model from reading. An
answer's accuracy is its agreement with the answers of ten people, each left out in turn: the mean of
min(1, matches / 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.normalise import normalise_pythia, normalise_vlmevalkit
from regaze.eval.benchmarks.common.scoring import Scorer, ratio
from regaze.reading import StrPath

SUFFIX = "\nAnswer the question using a single word or phrase."
ANSWERS = "TextVQA_0.5.1_val.json"
#: answers to a question: with fewer, no answer could be fully right
PEOPLE = 10


@dataclass(frozen=True)
class AgreementScorer(Scorer):
    """Agreement with the answers of ten people after normalisation; a reference is the list of these."""

    name: str
    version: str
    normalise: Callable[[str], str]
    metrics: tuple[str, ...] = ("accuracy",)

    def count(self, references: Sequence[Sequence[str]], answers: Sequence[str]) -> np.ndarray:
        """[n, 2]: agreement in 0..1, and 1."""
        agreements = [self.agreement(*pair) for pair in zip(references, answers, strict=True)]
        return np.array([agreements, np.ones(len(agreements))]).T

    def agreement(self, reference: Sequence[str], answer: str) -> float:
        """Mean over people of min(1, number of other people with the same answer / 3)."""
        normalised = self.normalise(answer)
        matches = [self.normalise(other) == normalised for other in reference]
        return sum(min(1.0, (sum(matches) - own) / 3) for own in matches) / len(matches)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"accuracy": ratio(sums[..., 0], sums[..., 1])}


PYTHIA = AgreementScorer(
    "pythia", "haotian-liu/LLaVA c121f04 m4c_evaluator.py; lmms-eval 75571cf", normalise_pythia
)
VLMEVALKIT = AgreementScorer("vlmevalkit", "VLMEvalKit e8e78f0", normalise_vlmevalkit)


@dataclass(frozen=True)
class TextVqa(BaseBenchmark):
    """The 5,000 validation questions.

    With OCR tokens the prompts are those of LLaVA's question file: "Reference OCR token: ..." between the
    question and the suffix (its published 58.2 for 7B). Harnesses use no OCR tokens.
    """

    items: tuple[Item, ...]
    suffix: str = SUFFIX
    name: str = "textvqa"
    about: ClassVar[About] = About(
        title="TextVQA",
        paper="Singh et al., CVPR 2019, arXiv 1904.08920",
        licence="CC BY 4.0",
        images="OpenImages photographs (Flickr, CC BY 2.0)",
        home="https://textvqa.org",
        hub="lmms-lab-encoder/textvqa",
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        limit: int | None = None,
        ocr: StrPath | None = None,
        **options: Any,
    ) -> TextVqa:
        """From TextVQA_0.5.1_val.json in `folder`, images as <image_id>.jpg in `images` (train_images).

        Args:
            ocr: TextVQA_Rosetta_OCR_v0.2_val.json, for prompts with OCR tokens.

        Raises:
            InputError: A file or folder is missing or malformed.
        """
        folder, images = files.folders_of(folder, images, "train_images")
        path = files.find_file(folder, ANSWERS)
        image_folder = files.require_folder(images, "image folder")
        tokens = _read_ocr_tokens(ocr) if ocr else {}
        data = files.require_field(files.read_json(path), "data", list, str(path))
        items = []
        for number, record in enumerate(data):
            source = f"{path}: data[{number}]"
            image_id = files.require_field(record, "image_id", str, source)
            image = image_folder / f"{image_id}.jpg"
            items.append(_item(record, image, source, tokens.get(image_id) if ocr else None))
        return cls(limit_items(items, limit), **options)

    @classmethod
    def from_hub(cls, *, limit: int | None = None, **options: Any) -> TextVqa:
        """From the hub's copy. Raises InputError if `datasets` is missing or the hub cannot be reached."""
        rows = hub.read_rows(cls.about.hub, split="validation", limit=limit)
        items = [_item(row.values, row.image, row.source) for row in rows]
        return cls(limit_items(items, None), **options)

    def scorers(self) -> Sequence[Scorer]:
        return (PYTHIA, VLMEVALKIT)


def _item(record: Any, image: Path | None, source: str, ocr_tokens: Sequence[str] | None = None) -> Item:
    question = files.require_field(record, "question", str, source)
    answers = tuple(files.require_texts(record, "answers", source))
    if len(answers) != PEOPLE or not any(answer.strip() for answer in answers):
        raise InputError(
            f"{source}: 'answers' must be a list of texts of {PEOPLE} people, got {list(answers)!r}"
        )
    if ocr_tokens is not None:
        question += f"\nReference OCR token: {', '.join(ocr_tokens)}"
    key = str(files.require_field(record, "question_id", (int, str), source))
    most_frequent = max(answers, key=answers.count)
    return Item(key, "validation", image, question, most_frequent, source, answers, id=key)


def _read_ocr_tokens(path: StrPath) -> dict[str, list[str]]:
    """{image id: its OCR tokens} of Rosetta's file."""
    tokens: dict[str, list[str]] = {}
    for number, record in enumerate(files.require_field(files.read_json(path), "data", list, f"{path}")):
        source = f"{path}: data[{number}]"
        image_id = files.require_field(record, "image_id", str, source)
        if image_id in tokens:
            raise InputError(f"{source}: a second entry of image_id {image_id!r}")
        tokens[image_id] = files.require_texts(record, "ocr_tokens", source)
    return tokens
