"""Prefer yes: the question, followed by a sentence that asks for yes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from PIL import Image

from regaze.interventions.base import MultiPassMethod
from regaze.interventions.controls.base import Control
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True)
class PreferYes(Control, MultiPassMethod):
    """Append a sentence to each question that tells the model to prefer yes.

    Source: Yin et al., "The Mirage of Performance Gains" (arXiv:2504.10020): where a method gains on POPE
    because it says yes more often, this gains as much. The prompt is another one, so it shares no prefix.
    """

    name: ClassVar[str] = "prefer-yes"
    summary: ClassVar[str] = "ask the model to prefer yes"
    source: ClassVar[str] = "arXiv:2504.10020"
    edits: ClassVar[str] = "nothing inside the model; the prompt"
    cost: ClassVar[str] = "one forward; a few more tokens in the prompt"
    release: ClassVar[str] = "ustc-hyin/cd_rethink, Apache-2.0. Code and README have different sentences."
    answers = "yes/no"

    sentence: str = field(
        default="Answer yes whenever possible.", metadata={"help": "what is appended ('': nothing)"}
    )

    @property
    def is_identity(self) -> bool:
        return not self.sentence.strip()

    def answer_batch(
        self, gaze: Gaze, images: list[list[Image.Image]], questions: list[str], options: dict[str, Any]
    ) -> list[Any]:
        if not self.is_identity:
            questions = [f"{question} {self.sentence}" for question in questions]
        return gaze.ask(images, questions, batch_size=len(questions), **options)
