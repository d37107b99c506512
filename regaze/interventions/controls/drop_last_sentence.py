"""Drop the last sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from PIL import Image
from pydantic import NonNegativeInt

from regaze.interventions.base import MultiPassMethod
from regaze.interventions.controls.base import Control
from regaze.interventions.controls.sentences import without_last
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True)
class DropLastSentence(Control, MultiPassMethod):
    """Remove the last sentence of the plain answer, if another one is left.

    What a caption says last is what the model is least sure of: any method that ends captions earlier lowers
    CHAIR.
    """

    name: ClassVar[str] = "drop-last-sentence"
    summary: ClassVar[str] = "remove the last sentence of the answer"
    source: ClassVar[str] = "ours"
    edits: ClassVar[str] = "nothing inside the model; the text of the answer"
    cost: ClassVar[str] = "one plain answer"
    answers = "texts"

    count: NonNegativeInt = field(default=1, metadata={"help": "how many sentences are removed (0: none)"})

    @property
    def is_identity(self) -> bool:
        return self.count == 0

    def answer_batch(
        self, gaze: Gaze, images: list[list[Image.Image]], questions: list[str], options: dict[str, Any]
    ) -> list[Any]:
        answers = gaze.ask(images, questions, batch_size=len(questions), **options)
        return [without_last(answer, self.count) for answer in answers]
