"""Continuations of one prompt in the key-value cache, and the last layer's attention of the newest tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel

from regaze.errors import CompositionError, UnsupportedModelError
from regaze.kernels import AttentionEdit, Stats, StatsRequest
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context


class LastLayerAttention(Callback):
    """Keeps the last layer's attention of the fed tokens, the strongest head of each key: [rows, keys]."""

    def __init__(self) -> None:
        self.row: Tensor | None = None
        self.active = False
        self._edit = AttentionEdit(stats=StatsRequest(full_rows=True))

    def prepare(self, context: Context) -> None:
        if len(context.callbacks) > 1:
            raise CompositionError(
                "OPERA runs another number of rows at every step, so that no other intervention or recording "
                "can follow its beams; ask outside gaze.using(...) and gaze.recording(...)"
            )

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


class Continuations:
    """One prompt and its continuations in the key-value cache, one row each.

    Attributes:
        prompt_length: tokens of the prompt. cached_length: tokens in the cache.
        logits: [rows, V] fp32, the next token's logits in each row.
    """

    def __init__(self, model: PreTrainedModel, inputs: BatchFeature):
        self.model, self.device = model, inputs["input_ids"].device
        self._options: dict[str, Any] = {"return_dict": True, **compat.last_logits_only(model)}
        self.prompt_length = self.cached_length = inputs["input_ids"].shape[1]
        out = model(**inputs, **self._options, use_cache=True)
        self.cache: Any = compat.cache_of(out)
        self.logits = out.logits[:, -1].float()

    def select(self, rows: Tensor) -> None:
        """Continue with these rows [n]; a row may be given several times."""
        self.cache.reorder_cache(rows.to(self.device))
        self.logits = self.logits[rows.to(self.logits.device)]

    def feed(self, ids: Tensor) -> None:
        """Append tokens [rows, T]. There is no padding to mask, and positions follow from the cache."""
        self.cached_length += ids.shape[1]
        inputs = compat.with_cache({"input_ids": ids.to(self.device)}, self.cache)
        self.logits = self.model(**inputs, **self._options).logits[:, -1].float()

    def restart(self, ids: Tensor) -> None:
        """Replace all rows by the answers `ids` [n, T]; the prompt is not run again."""
        try:
            self.cache.crop(self.prompt_length - self.cached_length)
        except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
            raise UnsupportedModelError(
                f"this {type(self.cache).__name__} cannot drop its last tokens, as going back needs; use "
                "OPERA(max_rollbacks=0)"
            ) from error
        self.cached_length = self.prompt_length
        self.select(torch.zeros(len(ids), dtype=torch.int64))
        self.feed(ids)
