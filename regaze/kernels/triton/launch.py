"""`attend` and `attention_stats` by the Triton kernels: few query rows are decoded, many are a prefill."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from regaze.kernels.pages import Pages
from regaze.kernels.spec import AttentionEdit, RowSelection, Stats, StatsRequest
from regaze.kernels.triton.call import Call, measure_rows, sum_columns
from regaze.kernels.triton.decode_operators import DecodeCall
from regaze.kernels.triton.decode_plan import DecodePlan, kind_of
from regaze.kernels.triton.prefill import attend_prefill, prefill_stats
from regaze.kernels.triton.shared_results import begin_call

#: Calls with at most so many query rows are decoded.
DECODE_ROWS = 8

#: Most channels of a policy whose outputs a decode program holds; with more, a call goes the way of a
#: prefill.
DECODE_CHANNELS = 4


def attend_triton(
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
    """Edited attention, arguments as for `attend`; an edit without `head_mean_slope` or `spread`."""
    with _call_on(query, key):
        if not _is_small(query, edit):
            options = _options(mask, scaling, is_causal, softcap, sinks)
            return attend_prefill(query, key, value, edit, **options)
        request = edit.stats
        if request is not None and _reports_reweighted(edit, request):
            out, _ = _decode(query, key, value, edit, None, mask, scaling, is_causal, softcap, sinks)
            call = Call(query, key, value, edit, mask, scaling, is_causal, softcap, sinks)
            return out, measure_rows(call, request)
        return _decode(query, key, value, edit, request, mask, scaling, is_causal, softcap, sinks)


def _is_small(query: Tensor, edit: AttentionEdit) -> bool:
    """Whether a call is decoded."""
    channels = 0 if edit.channels is None else edit.channels.count
    return query.shape[2] <= DECODE_ROWS and channels <= DECODE_CHANNELS


def _reports_reweighted(edit: AttentionEdit, request: StatsRequest) -> bool:
    """Whether statistics are those of rows after the policy, before which their weights are not known."""
    return request.edited and edit.selects_rows and edit.reweights


def is_decoded(query: Tensor, edit: AttentionEdit) -> bool:
    """Whether the split kernel alone serves a call with its statistics: no other kernel reads pages."""
    request = edit.stats
    if request is not None:
        in_full = request.full_rows or request.columns is not None
        if in_full or _reports_reweighted(edit, request):
            return False
    return _is_small(query, edit)


def attend_paged_triton(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    pages: Pages,
    edit: AttentionEdit,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Stats | None]:
    """Edited attention over pages, arguments as for `attend_paged`; a call that `is_decoded`."""
    causal = query.shape[2] > 1
    with _call_on(query, key_cache):
        return _decode(
            query, key_cache, value_cache, edit, edit.stats, None, scaling, causal, softcap, sinks, pages
        )


def attention_stats_paged_triton(
    query: Tensor,
    key_cache: Tensor,
    pages: Pages,
    request: StatsRequest,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Stats:
    """Statistics of plain attention over pages."""
    edit, causal = request.as_edit, query.shape[2] > 1
    with _call_on(query, key_cache):
        _, stats = _decode(
            query, key_cache, None, edit, request, None, scaling, causal, softcap, sinks, pages
        )
        assert stats is not None
        return stats


def attention_stats_triton(
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
    with _call_on(query, key):
        if query.shape[2] > DECODE_ROWS:
            options = _options(mask, scaling, is_causal, softcap, sinks)
            return prefill_stats(query, key, request, **options)
        edit = request.as_edit
        _, stats = _decode(query, key, None, edit, request, mask, scaling, is_causal, softcap, sinks)
        assert stats is not None
        return stats


def column_sums_triton(
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
    options = _options(mask, scaling, is_causal, softcap, sinks)
    with _call_on(query, key):
        return sum_columns(Call(query, key, None, _PLAIN, **options), rows, row_weights, largest)


_PLAIN = AttentionEdit()


def _options(
    mask: Tensor | None, scaling: float, is_causal: bool, softcap: float | None, sinks: Tensor | None
) -> dict[str, Any]:
    return {"mask": mask, "scaling": scaling, "is_causal": is_causal, "softcap": softcap, "sinks": sinks}


def _call_on(query: Tensor, key: Tensor) -> AbstractContextManager[Any]:
    """Begin a call, on the device of its tensors: kernels are launched on the current one."""
    if torch.compiler.is_compiling():  # a compiled graph sees to its devices itself
        return _HERE
    begin_call(key)
    if not query.is_cuda:
        return _HERE
    if torch.cuda.current_device() == query.device.index:
        return _HERE
    return torch.cuda.device(query.device)


_HERE: AbstractContextManager[Any] = nullcontext()


def _decode(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    edit: AttentionEdit,
    request: StatsRequest | None,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None,
    sinks: Tensor | None,
    pages: Pages | None = None,
) -> tuple[Tensor, Stats | None]:
    """Output (nothing without a value) and statistics, by the plan of the edit where there can be one."""
    if not torch.compiler.is_compiling() and (sinks is None or sinks.is_contiguous()):
        plans = edit.backend_cache.get(_PLANS)
        if plans is None:
            plans = edit.backend_cache[_PLANS] = {}
        kind, operands = kind_of(query, key, value, pages, mask, (scaling, is_causal, softcap, id(sinks)))
        if kind is not None:
            plan = plans.get(kind)
            if plan is None:
                call = Call(query, key, value, edit, mask, scaling, is_causal, softcap, sinks, pages)
                plan = plans[kind] = DecodePlan(call, request)
            return plan(operands, mask, edit)
    call = Call(query, key, value, edit, mask, scaling, is_causal, softcap, sinks, pages)
    return DecodeCall(call).run(request)


#: Where an edit stores the plans of its calls.
_PLANS = "triton plans"
