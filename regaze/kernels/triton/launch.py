"""`attend` and `attention_stats` by the Triton kernels: few query rows are decoded, many are a prefill.

Decoding is two operators, `decode_split` and `decode_merge`, and shapes alone decide what they launch.
Partial sums pass between them as tensors from torch's allocator, which hands every layer the memory that the
layer before gave back, and which belongs to the graph that captures them: there is no other state.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from regaze.kernels.channels import Channels
from regaze.kernels.policies import coefficients_of
from regaze.kernels.spec import AttentionEdit, Stats, StatsRequest
from regaze.kernels.triton.call import Call, measure_rows
from regaze.kernels.triton.decode import decode_split
from regaze.kernels.triton.key_ranges import visible_ranges
from regaze.kernels.triton.merge import decode_merge, merge_masses, stats_names
from regaze.kernels.triton.policy import head_coefficients, triton_part
from regaze.kernels.triton.prefill import attend_prefill, prefill_stats
from regaze.kernels.triton.shared_results import remember
from regaze.kernels.triton.weight_slices import row_slices

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
    """Edited attention, arguments as for `attend`; an edit without `head_mean_slope`."""
    options = _options(mask, scaling, is_causal, softcap, sinks)
    channels = 0 if edit.channels is None else edit.channels.count
    with _device_of(query):
        if query.shape[2] > DECODE_ROWS or channels > DECODE_CHANNELS:
            return attend_prefill(query, key, value, edit, **options)
        return Decode(Call(query, key, value, edit, **options)).attend()


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
    options = _options(mask, scaling, is_causal, softcap, sinks)
    with _device_of(query):
        if query.shape[2] > DECODE_ROWS:
            return prefill_stats(query, key, request, **options)
        return Decode(Call(query, key, None, request.as_edit, **options)).attention_stats(request)


def _options(
    mask: Tensor | None, scaling: float, is_causal: bool, softcap: float | None, sinks: Tensor | None
) -> dict[str, Any]:
    return {"mask": mask, "scaling": scaling, "is_causal": is_causal, "softcap": softcap, "sinks": sinks}


def _device_of(query: Tensor) -> AbstractContextManager[Any]:
    """Kernels are launched on the current device, which need not be the one that holds the tensors."""
    if not query.is_cuda or torch.compiler.is_compiling():  # a compiled graph sees to its devices itself
        return nullcontext()
    return torch.cuda.device(query.device)


class Decode:
    """One call with few query rows: which operators run, and on what."""

    def __init__(self, call: Call):
        edit, self.call = call.edit, call
        self.changes = edit.edits_rows and (edit.rows is None or len(edit.rows.index) > 0)
        self.policy = edit.policy if self.changes else None
        self.rows = call.row_list(None, edited=self.changes, mapped=False)

    def attend(self) -> tuple[Tensor, Stats | None]:
        """Output and statistics."""
        call, request = self.call, self.call.edit.stats
        reweighted = self.policy is not None or self.rows.value_gain is not None
        if request is not None and request.edited and reweighted:
            # The weights of an edited row are known after the policy only.
            return self._run(None)[0], measure_rows(call, request)
        out, stats = self._run(request)
        return out, None if request is None else self._stats(request, stats)

    def attention_stats(self, request: StatsRequest) -> Stats:
        """Statistics alone: V is not read."""
        return self._stats(request, self._run(request)[1])

    def _run(self, request: StatsRequest | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The output (nothing without a value), and the statistics by the names of `StatsArg`."""
        call = self.call
        partials = iter(self._split(request))
        sums, outputs = (None, None) if call.value is None else (next(partials), next(partials))
        partial_stats = next(partials, None)
        coefficients, function, numbers = self._coefficients(sums)
        requested = (False,) * 4
        if request is not None:
            needs_softmax = request.full_rows or request.columns is not None
            requested = request.entropy, request.top1, request.lse, needs_softmax
        selection = None if request is None else request.rows
        results = iter(
            decode_merge(
                call.query,
                sums,
                outputs,
                partial_stats,
                call.sinks,
                self.rows.selected,
                coefficients,
                call.edit.head_gain,
                None if selection is None else selection.index,
                None if selection is None else selection.active,
                function,
                numbers,
                *requested,
            )
        )
        out = call.query.new_empty(0) if call.value is None else next(results)
        return out, dict(zip(stats_names(partial_stats, *requested), results, strict=True))

    def _coefficients(self, sums: Tensor | None) -> tuple[Tensor | None, str, tuple[float, ...]]:
        """Coefficients [B, Hq, Lq, K] of the policy, or the device function and numbers that give them."""
        call, policy = self.call, self.policy
        if policy is None or sums is None:
            return None, "", ()
        rows, part = call.query.shape[:3], triton_part(policy, call.query.shape[1])
        if part is None:
            return coefficients_of(policy, merge_masses(sums, call.sinks, rows)).contiguous(), "", ()
        if part.couples_heads:
            shape = (*rows, policy.channels)
            given = head_coefficients(None, sums, call.sinks, shape, part.function, part.numbers)
            return given, "", ()
        return None, part.function, part.numbers

    def _split(self, request: StatsRequest | None) -> list[Tensor]:
        call, edit, mask = self.call, self.call.edit, self.call.mask
        ranges = None
        if mask is not None:
            bits = self.rows.row_bits, self.rows.column_bits
            tensors = [part for part in (mask, *bits) if part is not None]
            ranges = remember("visible_ranges", tensors, None, lambda: visible_ranges(mask, *bits))
        return decode_split(
            self.rows.tensors,
            ranges,
            *_parts(edit.channels if self.policy is not None else None),
            *_parts(None if request is None else request.channels),
            request is not None,
            request is not None and not request.edited and self.changes and edit.edits_scores,
            **call.options,
        )

    def _stats(self, request: StatsRequest, stats: dict[str, Tensor]) -> Stats:
        slices = None
        if request.full_rows or request.columns is not None:
            selection, call = request.rows, self.call
            index, active = (None, None) if selection is None else (selection.index, selection.active)
            rows = call.row_list(index, edited=request.edited and self.changes, mapped=False)
            shift, total = stats.pop("shift"), stats.pop("total")
            slices = row_slices(rows, shift, total, request.columns, active=active, **call.options)
        return Stats(**stats, slices=slices)


def _parts(channels: Channels | None) -> tuple[Tensor | None, Tensor | None, int]:
    """Channels as operators take them."""
    return (None, None, 0) if channels is None else (channels.groups, channels.weights, channels.num_groups)
