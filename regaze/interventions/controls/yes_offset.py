"""Yes offset: another threshold between yes and no."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import FiniteFloat
from torch import Tensor

from regaze.interventions.controls.first_word import FirstWord


@dataclass(frozen=True)
class YesOffset(FirstWord):
    """Add a constant to the logits of yes where an answer begins.

    A model that says yes too often gains on POPE from any lean towards no, and one that says no too often
    from the contrary. An offset chosen as a method's strength is, on the same questions and in as many
    trials, gains what such a lean is worth.
    """

    name: ClassVar[str] = "yes-offset"
    summary: ClassVar[str] = "lean to yes or to no by a constant"
    source: ClassVar[str] = "ours"

    offset: FiniteFloat = field(
        default=-1.0,
        metadata={"help": "what is added to the logits of yes (below 0: lean to no; 0: no edit)"},
    )

    @property
    def is_identity(self) -> bool:
        return self.offset == 0.0

    def raised(self, logits: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        return logits.new_full(logits.shape[:2], self.offset).float()
