"""Several edits on one layer become one, whatever the order in which they were activated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.errors import CompositionError
from regaze.kernels.key_value_shift import KeyValueShift
from regaze.kernels.spec import AttentionEdit, RowSelection


def compose(edits: Sequence[AttentionEdit]) -> AttentionEdit | None:
    """One edit with the effect of all `edits`, or None without any.

    The stages keep their fixed order, whatever the order of the edits. Within a stage biases add, gains
    multiply, sinks stand side by side in the denominator, unmasked rectangles unite. Undefined, and refused:
    two channel policies (each maps the masses of the softmax to coefficients), two score slopes or a slope
    beside a gain of another edit (the maps do not commute), a spread beside another edit of weights,
    different row selections of edits that change weights, two head sources, two score gates, shifts of keys
    that other rows see, two recordings.

    Edits that select rows should share one `RowSelection`: two are compared by value, see `equals`.

    Raises:
        CompositionError: for a combination without a meaning.
    """
    return reduce(_pair, edits) if edits else None


_SCORE_MAPS = ("score_slope", "head_mean_slope", "score_gain", "head_score_gain")


def _pair(a: AttentionEdit, b: AttentionEdit) -> AttentionEdit:
    for part, why in (
        ("policy", "each maps the masses of the softmax to coefficients"),
        ("stats", "request everything in one recording"),
        ("windows", "each sets how far a head looks back"),
        ("head_source", "each sets where a head looks"),
        ("score_gate", "each ranks the heads of the layer"),
    ):
        if getattr(a, part) is not None and getattr(b, part) is not None:
            raise CompositionError(f"two interventions set `{part}` on one layer: {why}; use one of them")
    maps = [[part for part in _SCORE_MAPS if getattr(edit, part) is not None] for edit in (a, b)]
    if all(maps) and any(part.endswith("slope") for part in (*maps[0], *maps[1])):
        raise CompositionError(
            f"one intervention sets `{maps[0][0]}`, another `{maps[1][0]}` on one layer: maps of |s| do not "
            "commute; use one of them"
        )
    for one, other in ((a, b), (b, a)):
        if one.spread is not None and other.edits_rows:
            raise CompositionError(
                "one intervention sets `spread`, another changes attention weights on one layer: the choice "
                "of columns of that one would be lost; use one of them"
            )
    return AttentionEdit(
        rows=_common_rows(a, b),
        score_slope=_either(a.score_slope, b.score_slope),
        head_mean_slope=_either(a.head_mean_slope, b.head_mean_slope),
        score_gain=_columns(torch.mul, a.score_gain, b.score_gain, 1.0),
        head_score_gain=_product(a.head_score_gain, b.head_score_gain),
        bias=_columns(torch.add, a.bias, b.bias, 0.0),
        sink=_both_sinks(a.sink, b.sink),
        channels=_either(a.channels, b.channels),
        policy=_either(a.policy, b.policy),
        value_gain=_columns(torch.mul, a.value_gain, b.value_gain, 1.0),
        spread=_either(a.spread, b.spread),
        head_gain=_product(a.head_gain, b.head_gain),
        unmask=a.unmask + b.unmask,
        shifts=_shifts(a, b),
        windows=_either(a.windows, b.windows),
        score_gate=_either(a.score_gate, b.score_gate),
        head_source=_either(a.head_source, b.head_source),
        stats=_either(a.stats, b.stats),
    )


T = TypeVar("T")


def _either(a: T | None, b: T | None) -> T | None:
    return b if a is None else a


def _common_rows(a: AttentionEdit, b: AttentionEdit) -> RowSelection | None:
    """The row selection of the edit that changes weights; both must agree when both do."""
    if not a.edits_rows or not b.edits_rows:
        return a.rows if a.edits_rows else b.rows
    if a.rows is b.rows or (a.rows is not None and b.rows is not None and a.rows.equals(b.rows)):
        return a.rows
    raise CompositionError(
        "two interventions change the attention weights of different query rows on the same layer; "
        "use them on different layers, or one of them"
    )


def _both_sinks(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Two sinks as one: the denominator has both."""
    return _either(a, b) if a is None or b is None else torch.logaddexp(a, b)


def _shifts(a: AttentionEdit, b: AttentionEdit) -> tuple[KeyValueShift, ...]:
    """All shifts, which the same rows must see."""
    if a.shifts and b.shifts:
        one, other = a.shifts[0].rows, b.shifts[0].rows
        if one is not other and (one is None or other is None or not one.equals(other)):
            raise CompositionError(
                "two interventions shift keys or values that different query rows see on the same layer; use "
                "them on different layers, or one of them"
            )
    return a.shifts + b.shifts


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Product of head gains [B or 1, Hq] or [B or 1, Hq, Lq]."""
    if a is None or b is None:
        return _either(a, b)
    if a.dim() != b.dim():
        a, b = (x if x.dim() == 3 else x[..., None] for x in (a, b))
    return a * b


def _columns(
    join: Callable[[Tensor, Tensor], Tensor], a: Tensor | None, b: Tensor | None, neutral: float
) -> Tensor | None:
    """Sum of biases or product of gains over the union of the named columns."""
    if a is None or b is None:
        return _either(a, b)
    length = max(a.shape[-1], b.shape[-1])
    a, b = (F.pad(x, (0, length - x.shape[-1]), value=neutral) for x in (a, b))
    return join(a, b)
