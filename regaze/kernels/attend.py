"""`attend`: attention with an edit inside. One function, one meaning, several backends."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.errors import BadParameterError, ShapeError
from regaze.kernels.backends import choose
from regaze.kernels.channels import Channels, describe
from regaze.kernels.empty import empty_output, empty_stats, is_empty
from regaze.kernels.reference import row_sinks
from regaze.kernels.sliding_cache import shift_edit, shift_stats
from regaze.kernels.spec import AttentionEdit, RowSelection, Stats, StatsRequest


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edit: AttentionEdit | None = None,
    *,
    mask: Tensor | None = None,
    scaling: float | None = None,
    is_causal: bool = False,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    first_key: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Stats | None]:
    """Scaled dot-product attention under an edit.

    The order is: soft cap, mask (+ unmask), score map, column bias, softmax (with sinks), channel
    coefficients, value gain, spread, head gain.

    Args:
        query: [B, Hq, Lq, D]. Without samples, rows or keys (B, Lq or Lk of 0) the result is empty, or zeros.
        key, value: [B, Hkv, Lk, D] and [B, Hkv, Lk, Dv]; Hq is a multiple of Hkv.
        edit: what to change and measure; None is plain attention.
        mask: None, bool (True: may look) or additive float, broadcastable to [B, Hq, Lq, Lk] with its last
            two dimensions in full. A float mask hides keys at or below half its dtype's minimum.
        scaling: factor of query @ key^T; default D ** -0.5.
        is_causal: used when `mask` is None; row i sits at key position Lk - Lq + i.
        softcap: c > 0, every scaled score becomes c tanh(s / c) before the mask (Gemma 2).
        sinks: [Hq] float, one more logit per head in the softmax's denominator, whose weight is dropped
            (gpt-oss): rows sum to less than 1, and `Stats.lse` is the log of the whole denominator. Edits act
            on keys only, but for `AttentionEdit.sink`, which is one more such logit in each row.
        first_key: number of keys that came before those in `key`, and that a sliding window has dropped:
            columns of `edit` and of its statistics count from the first of them.
        backend: "auto" (the fused kernels on a GPU, the compiled one for single rows on a CPU where Numba is
            installed, "torch" for the rest), or one of `BACKENDS`; the environment variable REGAZE_BACKEND
            replaces "auto".

    Returns:
        out [B, Hq, Lq, Dv] in the dtype of `query` (a fully masked row gives zeros), and the `Stats` that
        `edit.stats` requests.

    Raises:
        ShapeError: tensors that do not fit together, or a policy that returns another shape.
        BadParameterError: an unknown backend or one that cannot run this call, a soft cap that is not
            positive.
    """
    check_tensors(query, key, value, mask, softcap, sinks)
    edit = _PLAIN if edit is None else shift_edit(edit, first_key)
    edit.check(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    chosen = choose(backend, query, key, value, edit)
    if is_empty(query, key):
        out = empty_output(query, value)
        stats = None
        if edit.stats is not None:
            all_sinks = row_sinks(sinks, edit.sink if edit.stats.edited else None)
            stats = empty_stats(query, key.shape[2], edit.stats, all_sinks)
    else:
        options = {"mask": mask, "is_causal": is_causal, "softcap": softcap, "sinks": sinks}
        out, stats = chosen.attend(query, key, value, edit, scaling=scaling, **options)
    if edit.stats is not None and stats is not None:
        stats = shift_stats(stats, edit.stats, first_key)
    return out, stats


def attention_stats(
    query: Tensor,
    key: Tensor,
    request: StatsRequest | None = None,
    *,
    masses: Channels | None = None,
    columns: str | None = None,
    rows: RowSelection | None = None,
    window: int | None = None,
    row_weights: Tensor | None = None,
    per_query_head: bool = False,
    mask: Tensor | None = None,
    scaling: float | None = None,
    is_causal: bool = False,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    first_key: int = 0,
    backend: str = "auto",
) -> Stats:
    """Statistics of plain attention without its output, which another kernel has computed.

    What they are about is either a `request`, or said by name. Token pruning and cache compression need
    `columns`: docs/guide/kernels.md has the scores of H2O, SnapKV, TOVA, Finch and KVzip. Memory is linear
    in the lengths. Other arguments and errors as for `attend`.

    Args:
        masses: report masses of these channels in `Stats.masses`.
        columns: report what each key receives from the rows in `Stats.received`, [B, Hkv, Lk] fp32: "sum",
            the sum over the rows and over the query heads that share the key head of (row weight x) attention
            weight, or "max", the largest of these. 0 for a key that no row sees. Without gradients.
        rows: the query rows, masses included; None: all. A row that is not active in a sample adds nothing.
        window: the last so many query rows instead.
        row_weights: [B or 1, R] float, at least 0, a factor for each of these rows in `columns`.
        per_query_head: report `columns` for every query head, [B, Hq, Lk].

    Raises:
        BadParameterError: besides those of `attend`, for arguments that contradict each other, and where
            `columns` would need gradients.
    """
    check_tensors(query, key, key, mask, softcap, sinks)
    named = (masses, columns, rows, window, row_weights)
    if request is not None and any(part is not None for part in named):
        raise BadParameterError("give a request, or masses, columns and their rows by name, not both")
    if per_query_head and columns is None:
        raise BadParameterError("`per_query_head` is how to report `columns`, which are not requested")
    if request is None:
        request = _named_request(query, masses, columns, rows, window, row_weights)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    options = {"mask": mask, "is_causal": is_causal, "softcap": softcap, "sinks": sinks}
    options |= {"scaling": scaling}
    stats = Stats()
    if columns is None or masses is not None:
        stats = _row_stats(query, key, request, options, first_key, backend)
    if columns is not None:
        received = _received(query, key, request.rows, row_weights, columns == "max", options, backend)
        if not per_query_head:  # the query heads that share a key head together
            per_group = received.unflatten(1, (key.shape[1], -1))
            received = per_group.amax(2) if columns == "max" else per_group.sum(2)
        stats = stats._replace(received=F.pad(received, (first_key, 0)))
    return stats


def _named_request(
    query: Tensor,
    masses: Channels | None,
    columns: str | None,
    rows: RowSelection | None,
    window: int | None,
    row_weights: Tensor | None,
) -> StatsRequest:
    """The request for `attention_stats` by name."""
    if masses is None and columns is None:
        raise BadParameterError("nothing to report: give a request, `masses` or `columns`")
    if columns not in (None, "sum", "max"):
        raise BadParameterError(f'columns must be "sum" or "max", got {columns!r}')
    queries = query.shape[2]
    if window is not None:
        if rows is not None:
            raise BadParameterError("give `rows` or `window`, the last so many of them, not both")
        if not 1 <= window <= queries:
            raise BadParameterError(f"window must be 1 to Lq = {queries} query rows, got {window}")
        rows = RowSelection(torch.arange(queries - window, queries, device=query.device))
    count = queries if rows is None else len(rows.index)
    if row_weights is not None:
        if columns is None:
            raise BadParameterError("`row_weights` weigh rows in `columns`, which are not requested")
        if (
            row_weights.dim() != 2
            or row_weights.shape[0] not in (1, query.shape[0])
            or (row_weights.shape[1] != count or not row_weights.is_floating_point())
        ):
            found = _named(row_weights=row_weights)
            raise ShapeError(f"row_weights must be [B or 1, R={count}] float, one per row; {found}")
    return StatsRequest(rows, channels=masses)


def _row_stats(
    query: Tensor, key: Tensor, request: StatsRequest, options: dict[str, Any], first_key: int, backend: str
) -> Stats:
    """Statistics of rows."""
    edit = shift_edit(request.as_edit, first_key)
    edit.check(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    assert edit.stats is not None
    if edit.stats.is_last_row(query.shape[2]):
        edit = edit.stats.of_all_rows.as_edit
        query, mask = last_row(query, options["mask"])
        options = {**options, "mask": mask}
    assert edit.stats is not None
    chosen = choose(backend, query, key, key, edit)
    if is_empty(query, key):
        stats = empty_stats(query, key.shape[2], edit.stats, row_sinks(options["sinks"], None))
    else:
        stats = chosen.attention_stats(query, key, edit.stats, **options)
    return shift_stats(stats, request, first_key)


def last_row(query: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The last query row, which sees every key or what its row of the mask shows."""
    return query[:, :, -1:], None if mask is None else mask[:, :, -1:]


def _received(
    query: Tensor,
    key: Tensor,
    rows: RowSelection | None,
    weights: Tensor | None,
    largest: bool,
    options: dict[str, Any],
    backend: str,
) -> Tensor:
    """[B, Hq, Lk] fp32 what keys receive from rows: the sum or the largest of (weighted) attention."""
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        raise BadParameterError(
            "`columns` have no gradients: call this under torch.no_grad(), or reduce the rows in full "
            "(StatsRequest(full_rows=True)) yourself"
        )
    edit = StatsRequest(rows).as_edit
    edit.check(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    chosen = choose(backend, query, key, key, edit)
    if is_empty(query, key):
        return torch.zeros(*query.shape[:2], key.shape[2], device=query.device)
    return chosen.column_sums(query, key, rows, weights, largest, **options)


_PLAIN = AttentionEdit()


def check_tensors(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> None:
    """Raise ShapeError or BadParameterError unless the arguments fit together."""

    def shapes() -> str:
        return _named(query=query, key=key, value=value)

    if not query.dim() == key.dim() == value.dim() == 4:
        raise ShapeError(f"query must be [B, Hq, Lq, D], key and value [B, Hkv, Lk, D]; {shapes()}")
    batch, heads, queries, dim = query.shape
    kv_batch, kv_heads, keys, key_dim = key.shape
    if batch != kv_batch or dim != key_dim or key.shape[:3] != value.shape[:3]:
        raise ShapeError(
            f"query [B, Hq, Lq, D], key [B, Hkv, Lk, D] and value [B, Hkv, Lk, Dv] disagree: {shapes()}"
        )
    if not all((heads, kv_heads, dim, value.shape[3])):
        raise ShapeError(f"attention needs at least one head, and D and Dv of at least 1: {shapes()}")
    if heads % kv_heads:
        raise ShapeError(f"Hq={heads} is not a multiple of Hkv={kv_heads}: {_named(query=query, key=key)}")
    if softcap is not None and not softcap > 0:
        raise BadParameterError(f"softcap must be positive (None for no soft cap), got {softcap}")
    if sinks is not None and (sinks.shape != (heads,) or not sinks.is_floating_point()):
        raise ShapeError(
            f"sinks must be [Hq] = [{heads}] float, one logit per query head; {_named(sinks=sinks)}"
        )
    if mask is not None:
        _check_mask(mask, batch, heads, queries, keys)


def _check_mask(mask: Tensor, batch: int, heads: int, queries: int, keys: int) -> None:
    fits = mask.dim() == 4 and mask.shape[2:] == (queries, keys)
    if not fits or mask.shape[0] not in (1, batch) or mask.shape[1] not in (1, heads):
        expected = [batch, heads, queries, keys]
        raise ShapeError(
            f"mask must be [B or 1, Hq or 1, Lq, Lk] with [B, Hq, Lq, Lk] = {expected}; {_named(mask=mask)}"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ShapeError(f"mask must be bool (True: may look) or additive float; {_named(mask=mask)}")


def _named(**tensors: Tensor) -> str:
    """Tensors as an error message names them: "query is [1, 2, 3, 4] float32, ..."."""
    return ", ".join(f"{name} is {describe(tensor)}" for name, tensor in tensors.items())
