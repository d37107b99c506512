"""Stop after so many tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from PIL import Image
from pydantic import PositiveInt

from regaze.interventions.base import MultiPassMethod
from regaze.interventions.controls.base import Control
from regaze.interventions.controls.sentences import without_fragment
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True)
class StopAfter(Control, MultiPassMethod):
    """Stop the answer after `tokens` tokens; with `complete`, at the end of the last sentence before that.

    Late objects of a caption are the ones that are made up: any method that shortens captions lowers CHAIR.
    `regaze compare --controls` chooses the number of tokens so that captions are as long as the method's.
    """

    name: ClassVar[str] = "stop-after"
    summary: ClassVar[str] = "stop after a number of tokens"
    source: ClassVar[str] = "ours"
    edits: ClassVar[str] = "nothing inside the model; the length of the answer"
    cost: ClassVar[str] = "less than one plain answer"
    answers = "texts"

    tokens: PositiveInt | None = field(
        default=None, metadata={"help": "most tokens of an answer (null: no other limit)"}
    )
    complete: bool = field(default=False, metadata={"help": "cut off what follows the last whole sentence"})

    @property
    def is_identity(self) -> bool:
        return self.tokens is None and not self.complete

    def answer_batch(
        self, gaze: Gaze, images: list[list[Image.Image]], questions: list[str], options: dict[str, Any]
    ) -> list[Any]:
        if self.tokens is not None:
            limit = options.get("max_new_tokens")
            options = {**options, "max_new_tokens": self.tokens if limit is None else min(limit, self.tokens)}
        answers = gaze.ask(images, questions, batch_size=len(questions), **options)
        return [without_fragment(answer) for answer in answers] if self.complete else answers
