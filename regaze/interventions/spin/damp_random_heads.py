"""SPIN with heads that a draw has chosen."""

from __future__ import annotations

from typing import Any

import torch

from regaze.interventions.base import Intervention
from regaze.interventions.controls.random_heads import random_ranks
from regaze.kernels import AttentionEdit
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role


class DampRandomHeads(Intervention):
    """Damps as many heads as the method beneath, in its layers and rows: the same in all rows and steps."""

    head_seed: int

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        if super().edit(layer, step, context) is None:
            return None
        known: dict[tuple[int, int], AttentionEdit] = context.state(self).setdefault("random", {})
        place = layer, min(step, 1)
        if place not in known:
            known[place] = AttentionEdit(head_gain=self._gain(layer, step, context))
        return known[place]

    def _gain(self, layer: int, step: int, context: Context) -> torch.Tensor:
        """[B, Hq, Lq] of the prompt, [B, Hq] of an answer; 1 in rows that are left alone."""
        beneath: Any = self
        ranks = random_ranks(context.num_heads, layer, self.head_seed)
        gain = torch.where(ranks < beneath.count(context.num_heads), 1.0, beneath.factor)
        image = context.tokens.mask(Role.IMAGE).any(1)
        if step:
            return torch.where(image[:, None], gain, 1.0)
        rows = context.tokens.answering() & image[:, None]
        return torch.where(rows[:, None], gain[:, None], 1.0)
