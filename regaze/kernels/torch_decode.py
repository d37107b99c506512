"""A single query row per head in plain torch: decode steps, where the number of operations costs most.

What depends on the edit alone is worked out in its first call and stored with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.kernels.policies import FoldedPolicy, offers
from regaze.kernels.reference import in_window, keys_share, measure, row_sinks, visibility
from regaze.kernels.spec import AttentionEdit, Stats, StatsRequest
from regaze.kernels.torch_rows import (
    LARGE_ELEMENTS,
    edited_softmax,
    grouped,
    masked_softmax,
    product,
    reweighted,
    row_scores,
    sdpa,
    weighted_values,
)

#: Scores of a single row, over batch and heads, below which launching an operation costs most.
SMALL_ELEMENTS = 1 << 11

_Fold = Callable[[Tensor], Tensor]


class _RowEdit(NamedTuple):
    """What an edit does to a single row.

    Attributes:
        changes: it may change the row's weights. selected: [B, 1, 1, 1] bool, in which samples; None: in all.
        maps, reweights: before the softmax, after it. fold: of the policy, where it has one.
        folded: a fold is all that there is.
    """

    changes: bool
    maps: bool
    reweights: bool
    selected: Tensor | None
    fold: _Fold | None
    folded: bool


def _row_edit(edit: AttentionEdit) -> _RowEdit:
    known: _RowEdit | None = edit.backend_cache.get("row")
    if known is None:
        acts = edit.edits_rows and edit.selects_rows
        active = None if edit.rows is None else edit.rows.active
        maps, fold = acts and edit.edits_scores, _folded(edit)
        parts = edit.value_gain, edit.spread, edit.sink
        others = edit.edits_mask or maps or any(part is not None for part in parts)
        known = _RowEdit(
            changes=edit.edits_mask or acts,
            maps=maps,
            reweights=acts and (edit.reweights or edit.spread is not None),
            selected=None if active is None else active[:, None, :, None],
            fold=fold,
            folded=acts and fold is not None and active is None and not others,
        )
        edit.backend_cache["row"] = known
    return known


def _folded(edit: AttentionEdit) -> _Fold | None:
    """The policy of an edit multiplied into its channels; None where it cannot be."""
    policy, channels = edit.policy, edit.channels
    if policy is None or channels is None or not offers(policy, "fold") or channels.outstanding is not None:
        return None
    with torch.inference_mode(False):  # stored with the edit, for later calls
        return cast(FoldedPolicy, policy).fold(channels)


def is_row(query: Tensor, request: StatsRequest | None) -> bool:
    """Whether a call has a single query row, and its statistics are about it."""
    if query.shape[2] != 1:
        return False
    return request is None or request.rows is None or len(request.rows.index) == 1


def attend_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edit: AttentionEdit,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Stats | None]:
    """Edited attention [B, Hq, 1, Dv] of query [B, Hq, 1, D], before the head gain."""
    row, request = _row_edit(edit), edit.stats
    usual = mask is None and softcap is None and sinks is None and not torch.is_grad_enabled()
    if usual and row.folded and request is None and query.dtype == key.dtype == value.dtype == torch.float32:
        assert row.fold is not None
        return _attend_folded(query, key, value, row.fold, scaling), None
    if not row.changes and softcap is None and sinks is None and not _products_are_faster(query, key):
        out = sdpa(query, key, value, mask, scaling, causal=False)
        if edit.sink is not None:
            out = out * keys_share(_log_sum(query, key, mask, scaling), edit.sink)[..., None]
        if request is None:
            return out, None
        sink = edit.sink if request.edited else None
        return out, row_stats(query, key, request, mask, scaling, None, None, sink)
    own_sinks, all_sinks = row_sinks(sinks, None), row_sinks(sinks, edit.sink)
    hidden, additive = _visibility(edit, mask, key)
    scores = row_scores(query, grouped(key), scaling, softcap, additive)
    softmax_is_plain = not row.maps and edit.sink is None
    plain = None
    if softmax_is_plain or edit.spread is not None or (request is not None and not request.edited):
        plain = masked_softmax(scores, hidden, own_sinks, in_place=not row.maps)
    if row.maps:
        edited = edited_softmax(edit, scores, hidden, all_sinks, row.selected)
    elif softmax_is_plain and plain is not None:
        edited = plain
    else:
        edited = masked_softmax(scores, hidden, all_sinks, in_place=True)
    final = edited[1]
    if row.reweights:
        folds = all_sinks is None and final.dtype == torch.float32 and not final.requires_grad
        weights = final if plain is None else plain[1]
        final = reweighted(edit, final, weights, row.selected, row.fold if folds else None)
    out = weighted_values(final, grouped(value))
    if request is None:
        return out, None
    if request.edited or plain is None:
        return out, measure(final, edited[0], request, _active(request), all_sinks)
    return out, measure(plain[1], plain[0], request, _active(request), own_sinks)


def _log_sum(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """[B, Hq, 1] log-sum-exp of the row's scores in plain attention."""
    hidden, additive = _visibility(_PLAIN, mask, key)
    scores = row_scores(query, grouped(key), scaling, None, additive)
    return torch.logsumexp(scores if hidden is None else scores.masked_fill(hidden, -torch.inf), -1)


def _attend_folded(query: Tensor, key: Tensor, value: Tensor, fold: _Fold, scaling: float) -> Tensor:
    """Attention [B, Hq, 1, Dv] whose rows see every key and are edited by a fold alone.

    In a small model each operation that its layers do not use takes as long as their own attention: its code
    has to be fetched anew.
    """
    batch, heads, _, dim = query.shape
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    scores = product(query.reshape(len(keys), -1, dim), keys, scaling)
    weights = fold(torch.softmax(scores, -1).view(batch, heads, -1))
    return torch.bmm(weights.view(scores.shape), values).view(batch, heads, 1, -1)


def row_stats(
    query: Tensor,
    key: Tensor,
    request: StatsRequest,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
    sink: Tensor | None = None,
) -> Stats:
    """Statistics of the row in plain attention, but for the `sink` of an edit."""
    all_sinks = row_sinks(sinks, sink)
    if softcap is None and all_sinks is None and _is_small(query, key, request, mask):
        return Stats(masses=_masses(query, key, request, mask, scaling))
    hidden, additive = _visibility(_PLAIN, mask, key)
    scores = row_scores(query, grouped(key), scaling, softcap, additive)
    scores, weights = masked_softmax(scores, hidden, all_sinks, in_place=True)
    return measure(weights, scores, request, _active(request), all_sinks)


_PLAIN = AttentionEdit()


def _active(request: StatsRequest) -> Tensor | None:
    return None if request.rows is None else request.rows.active


def _products_are_faster(query: Tensor, key: Tensor) -> bool:
    """Whether two products beat torch's kernel for a single row, in bfloat16 by several times."""
    fast = query.is_cpu and query.dtype in (torch.float32, torch.bfloat16)
    return fast and key.numel() >= LARGE_ELEMENTS


def _visibility(edit: AttentionEdit, mask: Tensor | None, key: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Keys that the row may not see, and the additive part of the mask; None where there are none."""
    keys, windows = key.shape[2], edit.windows
    if mask is not None:
        visible, additive = visibility(mask, 1, keys, False, edit.unmask, mask.device, windows)
        return ~visible, additive
    if windows is None:
        return None, None
    own = torch.full((1, 1, 1), keys - 1, device=key.device)
    return ~in_window(windows, own, keys), None


def launches_cost_most(query: Tensor, key: Tensor) -> bool:
    """Whether a call is so small that fetching the code of its operations takes longer than running it."""
    batch, heads, queries, _ = query.shape
    return queries == 1 and query.is_cpu and batch * heads * key.shape[2] <= SMALL_ELEMENTS


def _is_small(query: Tensor, key: Tensor, request: StatsRequest, mask: Tensor | None) -> bool:
    """Whether only masses of one short row are requested, which one kernel can give."""
    return (
        request.only_masses
        and launches_cost_most(query, key)
        and query.dtype == torch.float32
        and not torch.is_grad_enabled()
        and (mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1))
        and request.channels is not None
        and request.channels.outstanding is None
        and request.channels.count <= query.shape[3]
    )


def _masses(query: Tensor, key: Tensor, request: StatsRequest, mask: Tensor | None, scaling: float) -> Tensor:
    """Masses [B, Hq, 1, K] of the row as attention whose values are the channels' columns.

    It is the kernel that the layer has just run, whose code the processor's caches hold.
    """
    channels, keys = request.channels, key.shape[2]
    assert channels is not None
    cache = request.as_edit.backend_cache
    values: Tensor | None = cache.get("values")  # of the last call: the layers of a step share them
    if values is None or values.shape[2] != keys or values.shape[:2] != key.shape[:2]:
        values = cache["values"] = _columns_as_values(request, query, key)
    out = F.scaled_dot_product_attention(query, key, values, mask, scale=scaling, enable_gqa=True)
    return out.narrow(3, 0, channels.count)


def _columns_as_values(request: StatsRequest, query: Tensor, key: Tensor) -> Tensor:
    """The channels' columns as the values of each head, [B, Hkv, Lk, D], with zeros beside them."""
    (batch, kv_heads, keys, _), dim = key.shape, query.shape[3]
    channels, cache = request.channels, request.as_edit.backend_cache
    assert channels is not None
    rows: Tensor | None = cache.get("rows")  # [B or 1, n, D]
    if rows is None or rows.shape[1] < keys or rows.shape[2] != dim:
        with torch.inference_mode(False):  # stored for later calls
            columns = channels.mixed(torch.eye(dim, channels.count))
            rows = cache["rows"] = columns.upto(2 * keys).mT.contiguous().detach()
    return rows[:, None].narrow(2, 0, keys).expand(batch, kv_heads, -1, -1)
