"""Gated heads: how a backend runs an edit with a `score_gate`.

The statistic of a gate is a sum of scores before the softmax, of which the kernels keep none. Since it is a
product of queries and summed keys, it is computed beside them, in torch, and so are the factors of their
output. No kernel knows of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from regaze.kernels.spec import AttentionEdit, Stats


def gating(
    attend: Callable[..., tuple[Tensor, Stats | None]],
) -> Callable[..., tuple[Tensor, Stats | None]]:
    """The `attend` of a backend, for edits with a `score_gate` as well."""

    def attend_gated(
        query: Tensor, key: Tensor, value: Tensor, edit: AttentionEdit, **options: Any
    ) -> tuple[Tensor, Stats | None]:
        gate = edit.score_gate
        if gate is None:
            return attend(query, key, value, edit, **options)
        out, stats = attend(query, key, value, edit.without_score_gate, **options)
        gains = gate.gains_of(query, key, options["scaling"])
        return (out * gains[..., None]).to(out.dtype), stats

    return attend_gated
