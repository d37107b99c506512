"""The specification of edited attention: plain torch, every step visible, everything materialised.

fp32 throughout, or fp64 for fp64 input. Read this file to know what an `AttentionEdit` means. Every
other backend is tested against it. `shifts` and a `head_source` are no matter of backends: shift.py and
borrow.py run them before these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regaze.kernels.policies import coefficients_of
from regaze.kernels.spec import AttentionEdit, RowSelection, Stats, StatsRequest, UnmaskRect, Windows


def attend_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edit: AttentionEdit,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Stats | None]:
    """Edited attention of query [B, Hq, Lq, D] over key and value [B, Hkv, Lk, D or Dv]; see `attend`."""
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    group = query.shape[1] // key.shape[1]
    q = query.to(exact)
    k, v = (x.to(exact).repeat_interleave(group, 1) for x in (key, value))
    queries, keys = q.shape[2], k.shape[2]

    scores = products = q @ k.transpose(-1, -2) * scaling  # [B, Hq, Lq, Lk]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    visible, additive = visibility(mask, queries, keys, is_causal, edit.unmask, q.device, edit.windows)
    if additive is not None:
        scores = scores + additive.to(exact)
    mapped = edit_scores(scores, edit)
    scores = scores.masked_fill(~visible, -torch.inf)
    own_sinks, all_sinks = row_sinks(sinks, None), row_sinks(sinks, edit.sink)
    plain = safe_softmax(scores, own_sinks)

    selected = row_mask(edit.rows, q.shape[0], queries, q.device)  # [B, 1, Lq, 1]
    edited_scores = torch.where(selected & visible, mapped, scores)
    weights = safe_softmax(edited_scores, all_sinks)

    final = weights
    if edit.policy is not None and edit.channels is not None:
        coefficients = coefficients_of(edit.policy, edit.channels.masses(weights))  # [B, Hq, Lq, K]
        final = edit.channels.reweighted(final, coefficients)
    if edit.value_gain is not None:
        final = final * edit.columns("value_gain", keys)[:, :, None].to(exact)
    if edit.spread is not None:
        final = spread_out(plain, final, edit.columns("spread", keys))
    final = torch.where(selected, final, weights)

    out = final @ v
    if edit.head_gain is not None:
        out = out * (edit.head_gain if edit.head_gain.dim() == 3 else edit.head_gain[..., None])[..., None]

    if (gate := edit.score_gate) is not None:
        sums = (products[..., : gate.columns.shape[1]] * gate.columns[:, None, None]).sum(-1)
        out = out * gate.gains(sums)[..., None]

    stats = None
    if edit.stats is not None:
        edited = edit.stats.edited
        row, score, sink = (final, edited_scores, all_sinks) if edited else (plain, scores, own_sinks)
        active = None
        if (rows := edit.stats.rows) is not None:
            row, score, active = row[:, :, rows.index], score[:, :, rows.index], rows.active
            sink = sinks_of(sink, rows.index)
        stats = measure(row, score, edit.stats, active, sink)
    return out.to(query.dtype), stats


def attention_stats_reference(
    query: Tensor,
    key: Tensor,
    request: StatsRequest,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Stats:
    """Statistics of plain attention; see `attention_stats`."""
    options = {"mask": mask, "scaling": scaling, "is_causal": is_causal, "softcap": softcap, "sinks": sinks}
    stats = attend_reference(query, key, key, request.as_edit, **options)[1]  # type: ignore[arg-type]
    assert stats is not None
    return stats


def column_sums_reference(
    query: Tensor,
    key: Tensor,
    rows: RowSelection | None,
    row_weights: Tensor | None,
    largest: bool,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """What keys receive from `rows` in plain attention, [B, Hq, Lk]: the sum, or the `largest`."""
    options = {"mask": mask, "scaling": scaling, "is_causal": is_causal, "softcap": softcap, "sinks": sinks}
    stats = attention_stats_reference(query, key, StatsRequest(rows, full_rows=True), **options)  # type: ignore[arg-type]
    assert stats.slices is not None
    return received(stats.slices, row_weights, largest)


def received(weights: Tensor, row_weights: Tensor | None, largest: bool) -> Tensor:
    """Sum or largest over the rows of weights [B, Hq, R, Lk] times `row_weights` [B or 1, R]; 0 of none."""
    if row_weights is not None:
        weights = weights * row_weights[:, None, :, None].to(weights.dtype)
    if not largest or not weights.shape[2]:
        return weights.sum(2)
    return weights.amax(2)


def visibility(
    mask: Tensor | None,
    queries: int,
    keys: int,
    is_causal: bool,
    unmask: tuple[UnmaskRect, ...],
    device: torch.device,
    windows: Windows | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Which keys each row may see, [B or 1, H or 1, Lq, Lk] bool, and the additive part of the mask.

    A float mask hides a key where it is at most half the most negative value of its dtype (-inf and
    "min-filled" masks). Without a mask, causal rows are aligned to the last key:
    row i sits at key position Lk - Lq + i.
    """
    additive = None
    if mask is None:
        visible = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        if is_causal:
            visible = visible.tril(keys - queries)
    elif mask.dtype == torch.bool:
        visible = mask
    else:
        visible = mask > torch.finfo(mask.dtype).min / 2
        additive = mask.masked_fill(~visible, 0.0)
    shown = visible
    for rect in unmask:
        columns = torch.zeros(rect.columns.shape[0], keys, dtype=torch.bool, device=device)
        columns[:, : rect.columns.shape[1]] = rect.columns
        visible = visible | (rect.rows[:, None, :, None] & columns[:, None, None])
    if windows is not None:
        own = torch.arange(keys - queries, keys, device=device)[None, None]
        if mask is not None:  # the last key that the mask shows: a static cache is longer than its content
            own = torch.where(shown, torch.arange(keys, device=device), -1).amax(-1)
        visible = visible & in_window(windows, own, keys)
    return visible, additive


def in_window(windows: Windows, own: Tensor, keys: int) -> Tensor:
    """Keys in the window of a row or among the first ones, [B or 1, Hq, Lq, keys] bool.

    `own` [B or 1, Hq or 1, Lq] is the key of each row itself.
    """
    key = torch.arange(keys, device=own.device)
    first = 0 if windows.first is None else windows.first[:, None, None, None]
    recent = own[..., None] - key < windows.span[:, :, None, None]
    return recent | (key - first < windows.sink)


def edit_scores(scores: Tensor, edit: AttentionEdit) -> Tensor:
    """Score map and column bias on [B, Hq, Lq, Lk], all finite; the caller hides the masked keys."""
    keys, dtype = scores.shape[-1], scores.dtype
    if edit.score_slope is not None:
        scores = scores + edit.columns("score_slope", keys)[:, :, None].to(dtype) * scores.abs()
    if edit.head_mean_slope is not None:
        slope = edit.columns("head_mean_slope", keys)[:, :, None].to(dtype)
        scores = scores + slope * edit.head_mean(scores)
    if edit.score_gain is not None:
        scores = scores * edit.columns("score_gain", keys)[:, :, None].to(dtype)
    if edit.head_score_gain is not None:
        scores = scores * edit.head_score_gain[:, :, None, None].to(dtype)
    if edit.bias is not None:
        scores = scores + edit.columns("bias", keys)[:, :, None].to(dtype)
    return scores


def spread_out(plain: Tensor, edited: Tensor, columns: Tensor) -> Tensor:
    """Weights [B, Hq, R, Lk] with the masses of `edited` on `columns` [B or 1, Lk] and on all others.

    Each of the two is divided as in `plain`, or where that holds nothing as in `edited`.
    """
    for part in (columns[:, None, None], ~columns[:, None, None]):
        held, given = (torch.where(part, x, 0.0).sum(-1, keepdim=True) for x in (plain, edited))
        tiny = torch.finfo(held.dtype).tiny
        edited = torch.where(part & (held >= tiny), plain * (given / held.clamp_min(tiny)), edited)
    return edited


def safe_softmax(scores: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Softmax of [B, Hq, R, Lk] over its last dimension in which a row of -inf becomes zeros.

    `sinks` [B or 1, Hq or 1, R or 1] are one more logit of each row, whose weight is dropped.
    """
    weights = torch.softmax(scores, -1).masked_fill(scores.amax(-1, keepdim=True) == -torch.inf, 0.0)
    return weights if sinks is None else weights * keys_share(torch.logsumexp(scores, -1), sinks)[..., None]


def row_sinks(sinks: Tensor | None, sink: Tensor | None) -> Tensor | None:
    """The sink logits of a call, [B or 1, Hq or 1, Lq or 1]: the model's [Hq], an edit's, or both as one."""
    own = None if sinks is None else sinks[None, :, None]
    if own is None or sink is None:
        return sink if own is None else own
    precise = torch.promote_types(torch.promote_types(own.dtype, sink.dtype), torch.float32)
    return torch.logaddexp(own.to(precise), sink.to(precise))


def sinks_of(sinks: Tensor | None, index: Tensor) -> Tensor | None:
    """Those of the rows `index` [R]."""
    return sinks if sinks is None or sinks.shape[2] == 1 else sinks[:, :, index]


def keys_share(lse: Tensor, sinks: Tensor) -> Tensor:
    """What sinks [B or 1, Hq or 1, R or 1] leave of rows with log-sum-exp [B, Hq, R], in 0..1.

    It is Z / (Z + e^sink), with Z = e^lse, and exactly 1 for a sink of -inf.
    """
    # Z is 0 in a fully masked row, and so may e^sink be: the finite minimum keeps 0 / 0 out.
    return torch.sigmoid(lse.clamp_min(torch.finfo(lse.dtype).min) - sinks.to(lse.dtype))


def log_denominator(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Log-sum-exp of [B, Hq, R, Lk] and of the rows' sinks, so that weights = exp(scores - result)."""
    lse = torch.logsumexp(scores, -1)
    return lse if sinks is None else torch.logaddexp(lse, sinks.to(lse.dtype))


def row_mask(rows: RowSelection | None, batch: int, queries: int, device: torch.device) -> Tensor:
    """A row selection as [B, 1, Lq, 1] bool."""
    if rows is None:
        return torch.ones(batch, 1, queries, 1, dtype=torch.bool, device=device)
    if rows.active is not None and len(rows.index) == queries:
        return rows.active[:, None, :, None]
    chosen = torch.zeros(batch, queries, dtype=torch.bool, device=device)
    chosen[:, rows.index] = True if rows.active is None else rows.active
    return chosen[:, None, :, None]


def measure(
    weights: Tensor,
    scores: Tensor,
    request: StatsRequest,
    active: Tensor | None,
    sinks: Tensor | None = None,
) -> Stats:
    """Statistics of rows [B, Hq, R, Lk]; a row that is not `active` [B, R] in a sample reports 0."""
    weights = weights if weights.dtype == torch.float32 else weights.float()
    lse = log_denominator(scores, sinks).float() if request.lse else None
    if active is not None:
        weights = weights * active[:, None, :, None]
        lse = lse.masked_fill(~active[:, None], 0.0) if lse is not None else None
    top_weight, top_column = weights.max(-1) if request.top1 else (None, None)
    slices = weights if request.full_rows else None
    if request.columns is not None:
        batch, heads, rows, _ = weights.shape
        index = request.columns[:, None, None].expand(batch, heads, rows, -1)
        slices = weights.gather(-1, index.clamp_min(0)) * (index >= 0)
    return Stats(
        masses=request.channels.masses(weights) if request.channels else None,
        entropy=torch.special.entr(weights).sum(-1) if request.entropy else None,
        top_weight=top_weight,
        top_column=top_column,
        lse=lse,
        slices=slices,
    )
