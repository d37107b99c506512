"""Near tie: yes wherever yes and no are about as likely."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.interventions.controls.first_word import FirstWord
from regaze.interventions.parameters import Fraction

#: By how much yes leads where the rule decides: nothing else is ever drawn, and the scores stay finite.
_LEAD = 100.0


@dataclass(frozen=True)
class NearTie(FirstWord):
    """Answer yes where yes and no together are likelier than `mass` and differ by less than `gap`.

    Source: Yin et al., "The Mirage of Performance Gains" (arXiv:2504.10020). It is a threshold that leans to
    yes: with p(yes) + p(no) = 1 it says yes up to odds of 3 to 1 for no. Probabilities are those of the
    model's logits, each summed over the spellings of a word. Where the rule decides, nothing else is drawn.
    """

    name: ClassVar[str] = "near-tie"
    summary: ClassVar[str] = "say yes where yes and no are about as likely"
    source: ClassVar[str] = "arXiv:2504.10020"
    release: ClassVar[str] = (
        "ustc-hyin/cd_rethink, Apache-2.0. Batches of one; applied at every token of the answer "
        '(steps="all"); the ids of one spelling in one tokenizer.'
    )

    mass: Fraction = field(default=0.2, metadata={"help": "least p(yes) + p(no), exclusive (1: no edit)"})
    gap: NonNegativeFloat = field(
        default=0.5, metadata={"help": "largest difference of p(yes) and p(no), exclusive (0: no edit)"}
    )
    steps: Literal["first", "all"] = field(
        default="first", metadata={"help": "the first token of the answer, or every one as in the release"}
    )

    @property
    def is_identity(self) -> bool:
        return self.gap == 0.0 or self.mass == 1.0

    @property
    def at_every_token(self) -> bool:
        return self.steps == "all"

    def raised(self, logits: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        behind = logits.amax(-1) - logits.index_select(-1, yes).amax(-1)
        return torch.where(self.decides(logits, yes, no), behind.float() + _LEAD, 0.0)

    def decides(self, logits: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        """Where the rule says yes, [B, T] bool, by logits [B, T, V] and the ids of either word, [n] each."""
        probabilities = logits.float().softmax(-1)
        p_yes, p_no = (probabilities.index_select(-1, ids).sum(-1) for ids in (yes, no))
        return (p_yes + p_no > self.mass) & ((p_yes - p_no).abs() < self.gap)
