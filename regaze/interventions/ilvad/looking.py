"""The first answer: how much attention image tokens get in each layer, from the tokens of an answer."""

from __future__ import annotations

import torch
from torch import Tensor

from regaze.errors import InputError
from regaze.interventions.ilvad.evidence import seen_by_half
from regaze.kernels import AttentionEdit, Stats, StatsRequest
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.columns import column_index
from regaze.toolkit.prompts.token_map import Role


class ILVADLooking(Callback):
    """Adds up, in one generation, what the decode steps' rows see of the image.

    Attributes:
        valid: [B, n] bool, on the CPU: the image tokens that exist.
    """

    fixed_edits = True
    counts_steps = True

    def __init__(self) -> None:
        self.valid = torch.zeros(0, 0, dtype=torch.bool)
        self._sums: dict[int, Tensor] = {}
        self._live: Tensor | None = None
        self._rows: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """[layers, B, n] on the CPU, the mean attention on each image token over the steps; 0 without any."""
        if not self._sums or self._rows is None:
            return torch.zeros(1, *self.valid.shape)
        rows = self._rows.cpu().clamp_min(1)[:, None]
        return torch.stack([self._sums[layer].cpu() / rows for layer in sorted(self._sums)])

    def prepare(self, context: Context) -> None:
        index = column_index(context.tokens.mask(Role.IMAGE)[: context.user_batch])
        if self.valid.numel() or self._sums:
            raise InputError("ILVAD's first answer was to be one generation of one batch")
        self.valid = index >= 0
        spare = index.new_full((context.batch - len(index), index.shape[1]), -1)  # of other contexts
        context.state(self)["edit"] = StatsRequest(columns=torch.cat([index, spare])).as_edit

    def on_step(self, context: Context, input_ids: Tensor | None) -> None:
        if context.step:
            assert input_ids is not None
            if self._live is None:
                self._live = torch.ones(len(input_ids), device=input_ids.device)
            self._rows = self._live if self._rows is None else self._rows + self._live

    def on_chosen(self, sequences: Tensor | None, ended: Tensor) -> None:
        self._live = (~ended).float()

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        edit: AttentionEdit | None = context.state(self)["edit"] if step and self.valid.numel() else None
        return edit

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        if context.replaying:
            return
        assert stats.slices is not None
        assert self._live is not None
        seen = seen_by_half(stats.slices[: context.user_batch])[:, -1]
        seen = seen * self._live.to(seen.device)[:, None]
        self._sums[layer] = seen if layer not in self._sums else self._sums[layer] + seen
