"""The number of the answer's token that each row of a forward predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from regaze.toolkit.model.context import Context


class AnswerCount:
    """Counts the tokens of an answer from 1, through the prefill and the steps that follow.

    An answer that the prompt has begun counts from its first token; a further turn over the cache of a chat
    counts from 1 again. Make it in `branches` or `prepare`; a callback with one `counts_steps`.

    Attributes:
        first: [B] on the CPU, the column of the prompt whose row predicts the first token.
        prompt: [B, L], the number of each row of the prompt; 0 before the answer.
    """

    def __init__(self, context: Context):
        answering = context.tokens.answering()[: context.user_batch, context.hidden_columns :]
        self.first: Tensor = answering.int().argmax(1)
        self.prompt: Tensor = (answering.cumsum(1) * answering).to(context.device)
        self._last = self.prompt[:, -1:]  # of the last row of the forward before

    def advance(self, context: Context, rows: int) -> Tensor:
        """[B, rows] of the last rows of the forward that ends; once per forward, in `combine_logits`."""
        if context.step == 0:
            return self.prompt[:, -rows:]
        self._last = torch.ones_like(self._last) if context.turn_begins else self._last + context.fed
        back = torch.arange(1 - rows, 1, device=self._last.device)
        return (self._last + back).clamp_min(0)
