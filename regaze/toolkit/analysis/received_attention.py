"""How much attention each token receives from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.kernels import RowSelection
from regaze.toolkit.analysis.forward import AttentionProbe, run_forward, stacked
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.context import Context
from regaze.toolkit.wrap import Gaze


def key_importance(gaze: Gaze, inputs: Mapping[str, Any], *, layers: Sequence[int] | None = None) -> Tensor:
    """Mean attention that each token receives from the tokens that see it, [S, B, Hq, L] fp32.

    Source: Gu et al., "When Attention Sink Emerges in Language Models" (arXiv:2410.10781): the mean of column
    k over rows i >= k; above 0.3 the token is a sink of the head. Inside `gaze.using(...)` it is that of the
    edited attention.

    Args:
        inputs: from `gaze.inputs`, or `with_answers`. layers: numbers; None: all.
    """
    probe = _ReceivedProbe(layers)
    with torch.no_grad():
        run_forward(gaze, inputs, probe)
    (totals,) = stacked(probe.per_layer, probe.chosen)
    counts = torch.stack([probe.counts[layer] for layer in probe.chosen])
    return totals / counts.clamp_min(1)[:, :, None]


class _ReceivedProbe(AttentionProbe):
    def __init__(self, layers: Sequence[int] | None):
        super().__init__(layers)
        self.per_layer: dict[int, tuple[Tensor]] = {}  # attention received by each key, [B, Hq, L]
        self.counts: dict[int, Tensor] = {}  # rows that see each key, [B, L]

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.visible = context.visible
        self._rows: RowSelection | None = None

    def measure(self, layer: int, call: AttentionCall) -> None:
        if self._rows is None:
            # Rows of padding and rows of branches, which follow the user's, add nothing.
            extra = call.query.shape[0] - self.batch
            self._rows = RowSelection.where(F.pad(self.visible, (self.before, 0, 0, extra)))
        rows = self._rows.to(call.query.device)
        self.per_layer[layer] = (call.received(rows)[: self.batch, :, self.before :],)
        count = self.visible.sum(1, keepdim=True).expand_as(self.visible)
        self.counts[layer] = self.visible.flip(1).cumsum(1).flip(1) if call.causal else count
