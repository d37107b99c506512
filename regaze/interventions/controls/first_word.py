"""What controls have in common that change how likely it is that an answer begins with yes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regaze.errors import UnsupportedModelError
from regaze.interventions.base import Intervention
from regaze.interventions.controls.base import Control
from regaze.kernels import Placeable
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination

#: How an answer may begin.
YES, NO = ("Yes", "yes", "YES", " Yes", " yes"), ("No", "no", "NO", " No", " no")


@dataclass(frozen=True)
class FirstWord(Control, Intervention):
    """Base of controls that add to the logits of yes, in all of its spellings that are one token."""

    edits: ClassVar[str] = "logits of the first answer token"
    cost: ClassVar[str] = "one forward"
    counts_steps: ClassVar[bool] = True
    answers = "yes/no"

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def at_every_token(self) -> bool:
        """Whether it acts on all tokens of the answer, not the first alone."""
        return False

    def raised(self, logits: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        """What is added to the logits of yes, [B, T], by logits [B, T, V] and the ids of either word."""
        raise NotImplementedError

    def prepare(self, context: Context) -> None:
        if self.is_identity:
            return
        answering = context.tokens.rows(slice(0, context.user_batch)).answering()
        rows = answering if self.at_every_token else answering & (answering.cumsum(1) == 1)
        yes, no = (_tokens(context.reader.tokenizer, spellings) for spellings in (YES, NO))
        if yes & no:
            raise UnsupportedModelError("this tokenizer begins yes and no with the same token")
        context.state(self)["words"] = _Words(torch.tensor(sorted(yes)), torch.tensor(sorted(no)), rows)

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state, begins = context.state(self), context.step == 0 or context.replaying
        if "words" not in state or not (self.at_every_token or begins):
            return None
        logits = context.logits()
        words: _Words = state["words"].to(logits.device)
        raised = self.raised(logits, words.yes, words.no)
        if begins:
            raised = torch.where(words.rows[:, -logits.shape[1] :], raised, 0.0)
        word = torch.zeros_like(logits[0, 0], dtype=torch.float32).index_fill(0, words.yes, 1.0)
        return LogitsCombination(others=[(raised[..., None], word)])


@dataclass(frozen=True, eq=False)
class _Words(Placeable):
    """The ids of either word, [n] each, and the rows of the prompt in which a rule applies, [B, L] bool."""

    yes: Tensor
    no: Tensor
    rows: Tensor


def _tokens(tokenizer: Any, spellings: Sequence[str]) -> set[int]:
    """The spellings that are one token, or the first token of the first spelling."""
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in spellings]
    whole = {ids[0] for ids in tokens if len(ids) == 1 and ids[0] != tokenizer.unk_token_id}
    return whole or {tokens[0][0]}
