"""Near tie: yes wherever yes and no are about as likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.errors import UnsupportedModelError
from regaze.interventions.base import Intervention
from regaze.interventions.controls.base import Control
from regaze.interventions.parameters import Fraction
from regaze.kernels import Placeable
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination

#: How an answer may begin.
YES, NO = ("Yes", "yes", "YES", " Yes", " yes"), ("No", "no", "NO", " No", " no")
#: By how much yes leads where the rule decides: nothing else is ever drawn, and the scores stay finite.
_LEAD = 100.0


@dataclass(frozen=True)
class NearTie(Control, Intervention):
    """Answer yes where yes and no together are likelier than `mass` and differ by less than `gap`.

    Source: Yin et al., "The Mirage of Performance Gains" (arXiv:2504.10020). It is a threshold that leans to
    yes: with p(yes) + p(no) = 1 it says yes up to odds of 3 to 1 for no. Probabilities are those of the
    model's logits, each summed over the spellings of a word. Where the rule decides, nothing else is drawn.
    """

    name: ClassVar[str] = "near-tie"
    summary: ClassVar[str] = "say yes where yes and no are about as likely"
    source: ClassVar[str] = "arXiv:2504.10020"
    edits: ClassVar[str] = "logits of the first answer token"
    cost: ClassVar[str] = "one forward"
    release: ClassVar[str] = (
        "ustc-hyin/cd_rethink, Apache-2.0. Batches of one; applied at every token of the answer "
        '(steps="all"); the ids of one spelling in one tokenizer.'
    )
    counts_steps: ClassVar[bool] = True
    answers = "yes/no"

    mass: Fraction = field(default=0.2, metadata={"help": "least p(yes) + p(no), exclusive (1: no edit)"})
    gap: NonNegativeFloat = field(
        default=0.5, metadata={"help": "largest difference of p(yes) and p(no), exclusive (0: no edit)"}
    )
    steps: Literal["first", "all"] = field(
        default="first", metadata={"help": "the first token of the answer, or every one as in the release"}
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def is_identity(self) -> bool:
        return self.gap == 0.0 or self.mass == 1.0

    def prepare(self, context: Context) -> None:
        if self.is_identity:
            return
        answering = context.tokens.rows(slice(0, context.user_batch)).answering()
        decided = answering if self.steps == "all" else answering & (answering.cumsum(1) == 1)
        yes, no = (_tokens(context.reader.tokenizer, spellings) for spellings in (YES, NO))
        if yes & no:
            raise UnsupportedModelError("this tokenizer begins yes and no with the same token")
        context.state(self)["rule"] = _Rule(torch.tensor(sorted(yes)), torch.tensor(sorted(no)), decided)

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state, begins = context.state(self), context.step == 0 or context.replaying
        if "rule" not in state or (self.steps == "first" and not begins):
            return None
        logits = context.logits()
        rule: _Rule = state["rule"].to(logits.device)
        decides = self.decides(logits, rule.yes, rule.no)
        if begins:
            decides = decides & rule.rows[:, -logits.shape[1] :]
        behind = logits.amax(-1) - logits.index_select(-1, rule.yes).amax(-1)
        raised = torch.where(decides, behind.float() + _LEAD, 0.0)
        word = torch.zeros_like(logits[0, 0], dtype=torch.float32).index_fill(0, rule.yes, 1.0)
        return LogitsCombination(others=[(raised[..., None], word)])

    def decides(self, logits: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        """Where the rule says yes, [B, T] bool, by logits [B, T, V] and the ids of either word, [n] each."""
        probabilities = logits.float().softmax(-1)
        p_yes, p_no = (probabilities.index_select(-1, ids).sum(-1) for ids in (yes, no))
        return (p_yes + p_no > self.mass) & ((p_yes - p_no).abs() < self.gap)


@dataclass(frozen=True, eq=False)
class _Rule(Placeable):
    """The ids of either word, [n] each, and the rows of the prompt in which the rule applies, [B, L] bool."""

    yes: Tensor
    no: Tensor
    rows: Tensor


def _tokens(tokenizer: Any, spellings: Sequence[str]) -> set[int]:
    """The spellings that are one token, or the first token of the first spelling."""
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in spellings]
    whole = {ids[0] for ids in tokens if len(ids) == 1 and ids[0] != tokenizer.unk_token_id}
    return whole or {tokens[0][0]}
