"""Teacher forcing inside `generate`: a given answer, a token per step, as in free generation."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class TeacherForcing(LogitsProcessor):
    """Allows one token per step: `tokens` [B, T], the first of them after a prompt of `start` tokens."""

    tokens: Tensor
    start: int

    def __init__(self, tokens: Tensor, start: int):
        self.tokens, self.start = tokens, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.tokens[:, input_ids.shape[1] - self.start, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen.to(scores.device), 0.0)
