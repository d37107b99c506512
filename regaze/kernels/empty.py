"""Calls without samples, query rows or keys: their results follow from shapes, so no backend sees them.

A row without keys is a fully masked one: its output and its weights are zeros, its log-sum-exp is -inf, or
its sink logit where there is one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regaze.kernels.reference import sinks_of
from regaze.kernels.spec import Stats, StatsRequest


def is_empty(query: Tensor, key: Tensor) -> bool:
    """Whether query [B, Hq, Lq, D] and key [B, Hkv, Lk, D] have no samples, no rows or no keys."""
    return query.shape[0] == 0 or query.shape[2] == 0 or key.shape[2] == 0


def empty_output(query: Tensor, value: Tensor) -> Tensor:
    """Zeros [B, Hq, Lq, Dv], which depend on `query` with gradient 0."""
    nothing = query[..., :0].sum(-1, keepdim=True)  # zeros, also where the query is not finite
    return nothing.expand(-1, -1, -1, value.shape[3]).contiguous()


def empty_stats(query: Tensor, keys: int, request: StatsRequest, sinks: Tensor | None) -> Stats:
    """The statistics of a request about rows that have no keys, or about no rows.

    `sinks` are those of all rows, see `reference.row_sinks`.
    """
    rows = query.shape[2] if request.rows is None else len(request.rows.index)
    shape = (query.shape[0], query.shape[1], rows)

    def zeros(*last: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(*shape, *last, dtype=dtype, device=query.device)

    slices = None
    if request.full_rows or request.columns is not None:
        slices = zeros(keys if request.columns is None else request.columns.shape[1])
    return Stats(
        masses=None if request.channels is None else zeros(request.channels.count),
        entropy=zeros() if request.entropy else None,
        top_weight=zeros() if request.top1 else None,
        top_column=zeros(dtype=torch.int64) if request.top1 else None,
        lse=_lse(zeros(), request, sinks) if request.lse else None,
        slices=slices,
    )


def _lse(zeros: Tensor, request: StatsRequest, sinks: Tensor | None) -> Tensor:
    """[B, Hq, R]: log of an empty denominator, or of one that holds the sink alone; 0 for inactive rows."""
    selection = request.rows
    if selection is not None:
        sinks = sinks_of(sinks, selection.index)
    lse = zeros - torch.inf if sinks is None else zeros + sinks.float()
    active = None if selection is None else selection.active
    return lse if active is None else lse.masked_fill(~active[:, None], 0.0)
