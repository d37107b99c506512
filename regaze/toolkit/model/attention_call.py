"""`AttentionCall`: the arguments of one layer's attention, and its weights a block of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regaze.caching import cached_property
from regaze.kernels import AttentionEdit, RowSelection, StatsRequest, attend, attention_stats

#: Weights held at once over batch and heads, in elements: 64 MiB in fp32, on a CPU 8 MiB.
BLOCK_ELEMENTS = 1 << 24
CPU_BLOCK_ELEMENTS = 1 << 21


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of a layer's attention, shown to callbacks with `on_attention`.

    Attributes:
        query: [B, Hq, Lq, D]. key: [B, Hkv, Lk, D]. value: [B, Hkv, Lk, Dv].
        output: [B, Lq, Hq, Dv], what the layer uses: part of its autograd graph, if there is one.
        edit: of the layer; neutral where there is none.
        options: mask, scaling, is_causal, softcap and sinks, as `regaze.kernels.attend` takes them.
        first_key: number of the first key, above 0 where a sliding cache has dropped others.
        causal_masks: by id, the masks whose `causal` is known in this forward; its layers share them.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    edit: AttentionEdit
    options: dict[str, Any]
    causal_masks: dict[int, tuple[Tensor, bool]] = field(default_factory=dict)
    first_key: int = 0

    @cached_property
    def causal(self) -> bool:
        """Whether no row sees a key after its own. Waits for the device, once per mask and forward."""
        mask, queries = self.options["mask"], self.query.shape[2]
        if queries != self.key.shape[2] or self.edit.unmask:
            return False
        if mask is None:
            return bool(self.options["is_causal"]) and queries > 1
        if id(mask) not in self.causal_masks:
            visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            self.causal_masks[id(mask)] = mask, not bool(visible.triu(1).any())
        return self.causal_masks[id(mask)][1]

    def blocks(self, first: int = 0) -> list[slice]:
        """The query rows from `first` on, in blocks whose weights fit a fixed budget of memory."""
        batch, heads, rows = self.query.shape[:3]
        budget = CPU_BLOCK_ELEMENTS if self.query.device.type == "cpu" else BLOCK_ELEMENTS
        size = max(1, budget // (batch * heads * self.key.shape[2]))
        return [slice(start, min(start + size, rows)) for start in range(first, rows, size)]

    def weights(self, rows: slice) -> Tensor:
        """Attention weights of a block of rows as the layer used them, [B, Hq, R, K] fp32, without a graph.

        K is the number of keys up to the last one that a row of the block sees, or all of them. An edit of
        the weights makes each block cost the layer's whole attention again.
        """
        with torch.no_grad():
            if self._unedited:
                return self._plain(rows)
            index = torch.arange(rows.start, rows.stop, device=self.query.device)
            request = StatsRequest(rows=RowSelection(index), full_rows=True, edited=True)
            stats = attend(
                self.query, self.key, self.value, self.edit.replace(stats=request), **self.options
            )[1]
        assert stats is not None
        assert stats.slices is not None
        return stats.slices

    def visible(self, rows: slice) -> Tensor:
        """The keys that the mask shows to a block of rows, [B or 1, R, K] bool with the K of `weights`."""
        mask, stop = self.options["mask"], self._stop(rows)
        if mask is None:
            seen = torch.ones(1, rows.stop - rows.start, stop, dtype=torch.bool, device=self.query.device)
            return seen.tril(rows.start) if self.options["is_causal"] and self.query.shape[2] > 1 else seen
        mask = mask[:, 0, rows, :stop]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2

    def received(self, rows: RowSelection) -> Tensor:
        """Attention that each key receives from `rows` together, as the layer used it, [B, Hq, Lk] fp32.

        Without a graph. The edited attention is computed a block of rows at a time (see `weights`).
        """
        with torch.no_grad():
            if self._unedited:
                plain = attention_stats(
                    self.query, self.key, columns="sum", rows=rows, per_query_head=True, **self.options
                )
                assert plain.received is not None
                return plain.received
            active = self.query.new_zeros(self.query.shape[0], 1, self.query.shape[2], 1)
            active[:, 0, rows.index, 0] = 1.0 if rows.active is None else rows.active.to(active)
            total = self.query.new_zeros(*self.query.shape[:2], self.key.shape[2], dtype=torch.float32)
            for block in self.blocks():
                weights = self.weights(block)
                total[..., : weights.shape[-1]] += (weights * active[:, :, block]).sum(2)
        return total

    @property
    def _unedited(self) -> bool:
        """Whether the weights are those of plain attention."""
        return self.edit.uses_own_weights

    def _stop(self, rows: slice) -> int:
        """How many keys a block of rows can see; for the last block nothing has to be known of the mask."""
        return rows.stop if rows.stop < self.query.shape[2] and self.causal else self.key.shape[2]

    def _plain(self, rows: slice) -> Tensor:
        mask, stop = self.options["mask"], self._stop(rows)
        options = self.options if mask is None else {**self.options, "mask": mask[:, :, rows, :stop]}
        slices = attention_stats(self.query[:, :, rows], self.key[:, :, :stop], _ALL, **options).slices
        assert slices is not None
        return slices

    def weight_gradient(self, rows: slice, gradient: Tensor) -> Tensor:
        """Gradient with respect to the weights of a block of rows, [B, Hq, R, Lk] fp32.

        Args:
            gradient: [B, Lq, Hq, Dv] with respect to `output`.
        """
        given = gradient[:, rows].transpose(1, 2).float()  # [B, Hq, R, Dv]
        if (gain := self.edit.head_gain) is not None:
            given = given * (gain[:, :, rows, None] if gain.dim() == 3 else gain[..., None, None])
        if (gate := self.edit.score_gate) is not None:
            gains = gate.gains_of(self.query.detach(), self.key.detach(), self.options["scaling"])
            given = given * gains[:, :, rows, None]
        batch, heads, count, width = given.shape
        grouped = given.reshape(batch, self.value.shape[1], -1, width)
        return (grouped @ self.value.detach().float().mT).view(batch, heads, count, -1)


_ALL = StatsRequest(full_rows=True)
