"""`attend` and `attention_stats` by the Triton kernels: few query rows are decoded, many are a prefill.

Decoding is two operators, `decode_split` and `decode_merge`, and nothing but shapes decides what they launch.
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
from regaze.kernels.triton.block_mask import remember
from regaze.kernels.triton.decode import decode_split, visible_ranges
from regaze.kernels.triton.merge import decode_merge, merge_masses, record_names
from regaze.kernels.triton.policy import head_coefficients, triton_part
from regaze.kernels.triton.prefill import attend_prefill, observe_prefill
from regaze.kernels.triton.prefill_call import Call, measure_rows
from regaze.kernels.triton.weight_slices import row_slices

#: Calls with at most so many query rows are decoded.
DECODE_ROWS = 8

#: Most channels of a policy whose outputs a decode program holds; with more, a call goes the way of a
#: prefill.
DECODE_CHANNELS = 4


def attend_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edit: AttentionEdit,
    *,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Stats | None]:
    """Edited attention of q [B, Hq, Lq, D] over k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv]; see `attend`."""
    options = _options(mask, scaling, is_causal, softcap, sinks)
    channels = 0 if edit.channels is None else edit.channels.count
    with _device_of(q):
        if q.shape[2] > DECODE_ROWS or channels > DECODE_CHANNELS:
            return attend_prefill(q, k, v, edit, **options)
        return Decode(Call(q, k, v, edit, **options)).attend()


def observe_triton(
    q: Tensor,
    k: Tensor,
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
    with _device_of(q):
        if q.shape[2] > DECODE_ROWS:
            return observe_prefill(q, k, request, **options)
        return Decode(Call(q, k, None, request.as_edit, **options)).attention_stats(request)


def _options(
    mask: Tensor | None, scaling: float, is_causal: bool, softcap: float | None, sinks: Tensor | None
) -> dict[str, Any]:
    return {"mask": mask, "scaling": scaling, "is_causal": is_causal, "softcap": softcap, "sinks": sinks}


def _device_of(q: Tensor) -> AbstractContextManager[Any]:
    """Kernels are launched on the current device, which need not be the one that holds the tensors."""
    if not q.is_cuda or torch.compiler.is_compiling():  # a compiled graph sees to its devices itself
        return nullcontext()
    return torch.cuda.device(q.device)


class Decode:
    """One call with few query rows: which operators run, and on what."""

    def __init__(self, call: Call):
        edit, self.call = call.edit, call
        self.changes = edit.edits_rows and (edit.rows is None or len(edit.rows.index) > 0)
        self.policy = edit.policy if self.changes else None
        self.scoring = call.scoring(None, edited=self.changes, mapped=False)
        self.bits = self.scoring.row_bits, self.scoring.column_bits

    def attend(self) -> tuple[Tensor, Stats | None]:
        """Output and statistics."""
        call, request = self.call, self.call.edit.stats
        reweighed = self.policy is not None or self.scoring.value_gain is not None
        if request is not None and request.edited and reweighed:
            # What the policy leaves of a row is known after the policy only.
            return self._run(None)[0], measure_rows(call, request)
        out, record = self._run(request)
        return out, None if request is None else self._stats(request, record)

    def attention_stats(self, request: StatsRequest) -> Stats:
        """Statistics alone: V is not read."""
        return self._stats(request, self._run(request)[1])

    def _run(self, request: StatsRequest | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The output (nothing without v), and the statistics by the names of `RecordArg`."""
        call = self.call
        parts = iter(self._split(request))
        sums, outputs = (None, None) if call.v is None else (next(parts), next(parts))
        measured = next(parts, None)
        coefficients, function, numbers = self._coefficients(sums)
        wanted = (
            request is not None and request.entropy,
            request is not None and request.top1,
            request is not None and request.lse,
            request is not None and (request.full_rows or request.columns is not None),
        )
        rows = None if request is None else request.rows
        merged = iter(
            decode_merge(
                call.q,
                sums,
                outputs,
                measured,
                call.sinks,
                self.scoring.chosen,
                coefficients,
                call.edit.head_gain,
                None if rows is None else rows.index,
                None if rows is None else rows.active,
                function,
                numbers,
                *wanted,
            )
        )
        out = call.q.new_empty(0) if call.v is None else next(merged)
        return out, dict(zip(record_names(measured, *wanted), merged, strict=True))

    def _coefficients(self, sums: Tensor | None) -> tuple[Tensor | None, str, tuple[float, ...]]:
        """Coefficients [B, Hq, Lq, K] of the policy, or the device function and numbers that give them."""
        call, policy = self.call, self.policy
        if policy is None or sums is None:
            return None, "", ()
        shape, part = call.q.shape[:3], triton_part(policy, call.q.shape[1])
        if part is None:
            return coefficients_of(policy, merge_masses(sums, call.sinks, shape)).contiguous(), "", ()
        if part.couples_heads:
            every = (*shape, policy.channels)
            given = head_coefficients(None, sums, call.sinks, every, part.function, part.numbers)
            return given, "", ()
        return None, part.function, part.numbers

    def _split(self, request: StatsRequest | None) -> list[Tensor]:
        call, edit, mask = self.call, self.call.edit, self.call.mask
        ranges = None
        if mask is not None:
            bits = self.scoring.row_bits, self.scoring.column_bits
            tensors = [part for part in (mask, *bits) if part is not None]
            ranges = remember("visible_ranges", tensors, None, lambda: visible_ranges(mask, *bits))
        return decode_split(
            self.scoring.tensors,
            ranges,
            *_parts(edit.channels if self.policy is not None else None),
            *_parts(None if request is None else request.channels),
            request is not None,
            request is not None and not request.edited and self.changes and edit.edits_scores,
            **call.options,
        )

    def _stats(self, request: StatsRequest, record: dict[str, Tensor]) -> Stats:
        slices = None
        if request.full_rows or request.columns is not None:
            rows, call = request.rows, self.call
            index, active = (None, None) if rows is None else (rows.index, rows.active)
            scoring = call.scoring(index, edited=request.edited and self.changes, mapped=False)
            shift, total = record.pop("shift"), record.pop("total")
            slices = row_slices(scoring, shift, total, request.columns, active=active, **call.options)
        return Stats(**record, slices=slices)


def _parts(channels: Channels | None) -> tuple[Tensor | None, Tensor | None, int]:
    """What the kernels take of channels."""
    return (None, None, 0) if channels is None else (channels.groups, channels.weights, channels.num_groups)
