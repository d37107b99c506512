"""How widely attention rows spread, in nats."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.toolkit.analysis.selection import check_sample, first_trace
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace


def attention_entropy(
    record: Record | Trace, *, of: Literal["row", "recorded"] = "row", sample: int = 0
) -> Tensor:
    """How widely a row looks, in nats, [layers, Hq, N].

    Args:
        record: recorded with entropy=True; with of="recorded" with slices.
        of: "row": over all keys; "recorded": over the recorded columns, renormalised over them, which with
            slices="image" is the visual entropy of CARVE (at most ln of the image's tokens); nan in a row
            that does not look at them.
    """
    if of not in ("row", "recorded"):
        raise BadParameterError(f'of must be "row" or "recorded", got {of!r}')
    trace = first_trace(record)
    sample = check_sample(trace, sample)
    if of == "row":
        return trace.require("entropy")[:, sample]
    return visual_entropy(trace.require("slices")[:, sample]).float()


def visual_entropy(attention: Tensor) -> Tensor:
    """Entropy in nats of attention on image tokens [..., n], renormalised over them: [...].

    CARVE's paper does not say whether it renormalises; values here are at most ln n.
    """
    share = attention.double() / attention.double().sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1)
