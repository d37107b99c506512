"""TextVQA: questions about text in photographs (Singh et al., CVPR 2019, arXiv 1904.08920).

No test of hallucination, but a control: an edit of the attention must not stop the model from reading. An
answer's accuracy is its agreement with ten people's, each left out in turn: the mean of min(1, matches / 3).
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
from regaze.eval.benchmarks.common.base import About, Item, Scored, first
from regaze.eval.benchmarks.common.normalise import normalise_pythia, normalise_vlmevalkit
from regaze.eval.benchmarks.common.scoring import Scorer, ratio

SUFFIX = "\nAnswer the question using a single word or phrase."
ANSWERS = "TextVQA_0.5.1_val.json"
OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"


@dataclass(frozen=True)
class Agreement(Scorer):
    """Agreement with people's answers under a normaliser; a reference is the list of their answers."""

    name: str
    version: str
    normalise: Callable[[str], str]
    figures: tuple[str, ...] = ("accuracy",)

    def tally(self, references: Sequence[Sequence[str]], answers: Sequence[str]) -> np.ndarray:
        """[n, 2]: agreement in 0..1, and 1."""
        agreed = [self.agreement(*pair) for pair in zip(references, answers, strict=True)]
        return np.array([agreed, np.ones(len(agreed))]).T

    def agreement(self, people: Sequence[str], answer: str) -> float:
        """Mean over people of min(1, how many of the others gave this answer / 3)."""
        given = self.normalise(answer)
        same = [self.normalise(other) == given for other in people]
        return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)

    def ratios(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"accuracy": ratio(sums[..., 0], sums[..., 1])}


PYTHIA = Agreement(
    "pythia", "haotian-liu/LLaVA c121f04 m4c_evaluator.py; lmms-eval 75571cf", normalise_pythia
)
VLMEVALKIT = Agreement("vlmevalkit", "VLMEvalKit e8e78f0", normalise_vlmevalkit)


@dataclass(frozen=True)
class TextVqa(Scored):
    """The 5,000 validation questions.

    With `ocr`, LLaVA's question file is followed: "Reference OCR token: ..." stands between the question and
    the suffix (its published 58.2 for 7B); harnesses send none.
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
        folder: Path,
        images: Path | None = None,
        *,
        limit: int | None = None,
        ocr: Path | None = None,
        **options: Any,
    ) -> TextVqa:
        """From TextVQA_0.5.1_val.json in `folder`, images as <image_id>.jpg in `images` (train_images).

        Args:
            ocr: TextVQA_Rosetta_OCR_v0.2_val.json, for prompts with OCR tokens.

        Raises:
            InputError: a file or folder is missing or malformed.
        """
        path = files.find_file(folder, ANSWERS)
        pictures = files.need_folder(images or folder / "train_images", "image folder")
        tokens = _ocr_tokens(ocr) if ocr else {}
        data = files.field(files.read_json(path), "data", list, str(path))
        items = []
        for number, record in enumerate(data):
            source = f"{path}: data[{number}]"
            image_id = files.field(record, "image_id", str, source)
            items.append(
                _item(record, pictures / f"{image_id}.jpg", source, tokens.get(image_id) if ocr else None)
            )
        return cls(first(items, limit), **options)

    @classmethod
    def from_hub(cls, *, limit: int | None = None, **options: Any) -> TextVqa:
        """From the hub's copy. Raises InputError when `datasets` is missing or the hub cannot be reached."""
        rows = hub.rows(cls.about.hub, split="validation", limit=limit)
        return cls(tuple(_item(row.values, row.image, row.source) for row in rows), **options)

    def scorers(self) -> Sequence[Scorer]:
        return (PYTHIA, VLMEVALKIT)


def _item(record: Any, image: Path | None, source: str, ocr: Sequence[str] | None = None) -> Item:
    question = files.field(record, "question", str, source)
    people = tuple(files.field(record, "answers", (list, tuple), source))
    if not people or not all(isinstance(answer, str) for answer in people):
        raise InputError(f"{source}: 'answers' must be a list of texts, got {people!r}")
    if ocr is not None:
        question += f"\nReference OCR token: {', '.join(ocr)}"
    key = str(files.field(record, "question_id", (int, str), source))
    return Item(key, "validation", image, question, max(set(people), key=people.count), source, people)


def _ocr_tokens(path: Path) -> dict[str, list[str]]:
    """{image id: its OCR tokens} of Rosetta's file."""
    records = files.field(files.read_json(path), "data", list, str(path))
    return {
        files.field(record, "image_id", str, f"{path}: data[{n}]"): list(record.get("ocr_tokens", ()))
        for n, record in enumerate(records)
    }
