"""Measures of single attention rows: entropy, mean distance back, share on attention sinks.

Each is of the n rows that a sample has, of the N of a record (`Trace.row_active`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from regaze.errors import BadParameterError, RecordingError, ShapeError
from regaze.toolkit.analysis.selection import check_sample, first_column, first_trace
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace


def attention_entropy(
    record: Record | Trace, *, of: Literal["row", "recorded"] = "row", sample: int = 0
) -> Tensor:
    """Entropy of each row of a sample in nats, [layers, Hq, n].

    Args:
        record: recorded with entropy=True; for of="recorded" with slices.
        of: "row": over all keys. "recorded": over the recorded columns, renormalised over them; with
            slices="image" this is CARVE's visual entropy, at most ln of the number of image tokens. It is nan
            in rows without weight on these columns.
        sample: row of the batch.
    """
    if of not in ("row", "recorded"):
        raise BadParameterError(f'of must be "row" or "recorded", got {of!r}')
    trace = first_trace(record)
    sample = check_sample(trace, sample)
    active = trace.row_active[sample]
    if of == "row":
        return trace.require("entropy")[:, sample][:, :, active]
    return visual_entropy(trace.require("slices")[:, sample][:, :, active]).float()


def visual_entropy(attention: Tensor) -> Tensor:
    """Entropy in nats of attention on image tokens [..., n], renormalised over them: [...], at most ln n.

    CARVE's paper (arXiv:2509.06461) does not say whether it renormalises.
    """
    share = attention.double() / attention.double().sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1)


def attention_distance(record: Record | Trace, *, sample: int = 0) -> Tensor:
    """Mean distance in tokens from each row back to its keys, weighted by attention, [layers, Hq, n].

    Source: the mean attention distance of Dosovitskiy et al. (arXiv:2010.11929), along the text. Padding does
    not count, as it gets no attention.

    Args:
        record: recorded with slices="all". sample: row of the batch.
    """
    trace = first_trace(record)
    active = trace.row_active[check_sample(trace, sample)]
    weights = _all_columns(trace)[:, sample][:, :, active]
    distance = trace.row_position[active][:, None] - torch.arange(weights.shape[-1])
    # The total is less than 1 in models with attention sinks of their own.
    total = weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)
    return (weights * distance.clamp_min(0)).sum(-1) / total


def sink_share(
    record: Record | Trace,
    sinks: Tensor | None = None,
    *,
    of: Literal["row", "recorded"] = "row",
    sample: int = 0,
) -> Tensor:
    """Share of each row's attention that lies on sink tokens, [layers, Hq, n].

    Args:
        record: recorded with slices="all", or "image" for the sinks among image tokens.
        sinks: [L] or [layers, L] bool over the prompt's columns of this sample (see `sink_tokens`); default:
            its first token.
        of: "row": share of all attention. "recorded": share of the attention on the recorded columns; with
            slices="image" this is the share of the image's attention that its sinks take (1 - r in VAR).
        sample: row of the batch.

    Raises:
        RecordingError: slices were not recorded. ShapeError: sinks of another shape.
    """
    if of not in ("row", "recorded"):
        raise BadParameterError(f'of must be "row" or "recorded", got {of!r}')
    trace = first_trace(record)
    active = trace.row_active[check_sample(trace, sample)]
    weights = trace.require("slices")[:, sample][:, :, active]
    places = torch.arange(weights.shape[-1]) if trace.slice_columns is None else trace.slice_columns[sample]
    length = trace.tokens.length if trace.tokens is not None else weights.shape[-1]
    if sinks is None:
        sinks = torch.zeros(length, dtype=torch.bool)
        sinks[first_column(trace, sample)] = True
    sinks = sinks.cpu().expand(len(trace.layers), -1) if sinks.dim() == 1 else sinks.cpu()
    if sinks.dim() != 2 or len(sinks) != len(trace.layers) or sinks.dtype != torch.bool:
        raise ShapeError(
            f"sinks must be [L] or [layers, L] = [{len(trace.layers)}, {length}] bool, "
            f"got {list(sinks.shape)}"
        )
    known = (places >= 0) & (places < sinks.shape[1])  # generated tokens are no sinks
    chosen = sinks[:, places.where(known, 0)] & known
    share = (weights * chosen[:, None, None]).sum(-1)
    if of == "row":
        return share
    return share / weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)


def _all_columns(trace: Trace) -> Tensor:
    weights = trace.require("slices")
    if trace.slice_columns is not None:
        raise RecordingError('this needs the weights of all columns; use gaze.recording(slices="all", ...)')
    return weights
