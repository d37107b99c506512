"""The last layer's attention of the newest tokens."""

from __future__ import annotations

from torch import Tensor

from regaze.errors import UnsupportedModelError
from regaze.kernels import AttentionEdit, Stats, StatsRequest
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.continuations import Alone


class LastLayerAttention(Alone):
    """Keeps the last layer's attention of the fed tokens, the strongest head of each key: [rows, keys]."""

    def __init__(self) -> None:
        super().__init__("OPERA")
        self.row: Tensor | None = None
        self.active = False
        self._edit = AttentionEdit(stats=StatsRequest(full_rows=True))

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        return self._edit if self.active and layer == context.num_layers - 1 else None

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        assert stats.slices is not None
        self.row = stats.slices[:, :, -1].amax(1)

    def take(self) -> Tensor:
        """The row of the forward that has just ended, divided by its sum, float64 on the CPU."""
        row, self.row = self.row, None
        if row is None:
            raise UnsupportedModelError(
                "OPERA reads the attention of the last layer, and this model's has none"
            )
        row = row.cpu().double()
        return row / row.sum(1, keepdim=True)
