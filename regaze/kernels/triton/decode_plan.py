"""What decode calls with one edit have in common, worked out once: bound launches and their fixed arguments.

A plan belongs to an edit and to a kind of call (`kind_of`): shapes but for the number of keys, which counts
by its power of two, types, device, and all else that Triton compiles a kernel for. It is stored with the
edit. A call then packs the arguments that do change and launches two kernels, `split_kernel` and
`decode_merge_kernel`; a policy that couples heads has its own between them. Where one split has all keys,
`split_kernel` finishes its rows alone.

Tensors of the edit are read where they are, so that they may be written to between steps. What has to be
derived from them (bits of unmasked rectangles, ends of windows, some row selections, copies with unit stride)
is derived again in each call.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regaze.kernels.pages import Pages
from regaze.kernels.policies import coefficients_of
from regaze.kernels.spec import COLUMN_PARTS, AttentionEdit, Stats, StatsRequest
from regaze.kernels.triton.arguments import (
    ColumnArg,
    MaskArg,
    MatrixArg,
    PagesArg,
    column_arg,
    mask_arg,
    pages_arg,
    sink_arg,
    varying,
)
from regaze.kernels.triton.bound import Launch, scratch
from regaze.kernels.triton.call import Call
from regaze.kernels.triton.decode import (
    SplitChannels,
    partial_shapes,
    split_arguments,
    split_kernel,
    split_launch,
    tiling_of,
)
from regaze.kernels.triton.decode_operators import decoded_stats
from regaze.kernels.triton.decode_whole import WholeArg
from regaze.kernels.triton.key_ranges import needs_ranges, ranges_of
from regaze.kernels.triton.merge import (
    MergeShape,
    PolicyArg,
    StatsArg,
    decode_merge_kernel,
    merge_arguments,
    merge_masses,
    requested_parts,
    room,
    stats_names,
)
from regaze.kernels.triton.policy import head_constants, head_kernel, numbers_on, triton_part
from regaze.kernels.triton.row_list import RowList


class Operands(NamedTuple):
    """Query, keys, values (or None), their pages and mask as kernels take them."""

    query: MatrixArg
    key: MatrixArg
    value: MatrixArg | None
    pages: PagesArg
    mask: MaskArg


def kind_of(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    pages: Pages | None,
    mask: Tensor | None,
    options: Hashable,
) -> tuple[Hashable, Operands]:
    """What a plan holds for, and the operands of a call of this kind.

    It is all that decides what is launched but for the edit. Triton compiles for strides and addresses that
    16 divides, for strides of 1, and for numbers of 64 bits. None: strides that are best left to Triton.
    """
    q0, q1, q2, q3 = query.stride()
    k0, k1, k2, k3 = key.stride()
    steps, last = q0 | q1 | q2 | k0 | k1 | k2, q3 | k3
    addresses, dim, value_arg = query.data_ptr() | key.data_ptr(), 0, None
    if value is not None:
        v0, v1, v2, v3 = value.stride()
        steps, last, dim = steps | v0 | v1 | v2, last | v3, value.shape[3]
        addresses |= value.data_ptr()
        value_arg = MatrixArg(value, v0, v1, v2)
    arg, seen = _NO_MASK, None
    if mask is not None:
        arg, (batch, heads, _, _) = mask_arg(mask), mask.shape
        _, b, h, m, n, _, _ = arg
        wide = (((b or 0) | (h or 0) | (m or 0)) >> 31, arg.is_wide)
        seen = mask.dtype, batch, heads, mask.data_ptr() & 15, b is None, h is None, n is None, wide
    _, kv_heads, keys, _ = key.shape
    pages_kind, places = None, _NO_PAGES
    if pages is not None:
        table, lengths = pages
        places, size = pages_arg(table, lengths), keys
        keys *= table.shape[1]
        start = table.data_ptr() & 15, lengths.data_ptr() & 15
        pages_kind = size, table.dtype, lengths.dtype, start
        last |= table.stride(1) | lengths.stride(0)  # copied where it is not 1
    operands = Operands(MatrixArg(query, q0, q1, q2), MatrixArg(key, k0, k1, k2), value_arg, places, arg)
    if (steps | addresses) & 15 or last != 1 or steps >> 31:
        return None, operands
    bucket = (keys - 1).bit_length()
    return (
        query.shape,
        kv_heads,
        bucket,
        dim,
        query.dtype,
        query.device,
        pages_kind,
        seen,
        options,
    ), operands


_NO_MASK, _NO_RANGES, _NO_PAGES = MaskArg(), ColumnArg(), PagesArg()
_NOTHING = torch.empty(0)


class DecodePlan:
    """The launches of calls of one kind, see `kind_of`; the first such call makes it.

    It is stored with its edit and so does not refer to it.
    """

    def __init__(self, call: Call, request: StatsRequest | None):
        edit, query = call.edit, call.query
        self.request, self.sinks = request, (call.sinks, edit.sink)
        self.options = (call.scaling, call.is_causal, call.softcap, call.sinks)
        self.changes = edit.edits_rows and edit.selects_rows
        self.policy = edit.policy if self.changes and call.value is not None else None
        self.channels = SplitChannels.of(edit, self.policy, request)
        rows = call.row_list(None, edited=self.changes, decoded=True)
        tiling = tiling_of(rows, self.channels)
        self.shapes = partial_shapes(rows, tiling, self.channels)
        self.shape = self._merge_shape(call, tiling.num_splits)
        self.stats_rows = varying(self.shape.stats_rows)
        requested = requested_parts(request)
        channels = self.channels.num_channels, self.channels.num_stats_channels
        names = stats_names(None if request is None else channels[1], *requested)
        self.examples = room(query, self.shape, names)  # results are made like these, which is quickest
        self.slots = [names.index(name) if name in names else None for name in StatsArg._fields]
        self.out_strides = self.examples[0].stride()[:3] if call.value is not None else ()
        part = triton_part(self.policy, query.shape[1])
        function = "" if part is None or part.couples_heads else part.function
        self.numbers = None if part is None else numbers_on(part.numbers, query.device)
        # One split has all that there is to merge, unless the policy runs between the kernels.
        self.is_whole = tiling.num_splits == 1 and (self.policy is None or bool(function))
        inside = function if self.is_whole else ""
        self.split = Launch(split_kernel, *split_launch(rows, tiling, self.channels, call.causal, inside))
        self.merge = Launch(decode_merge_kernel, self.shape.grid, self.shape.constants(function))
        self.heads: Launch | None = None
        if part is not None and part.couples_heads:
            constants = head_constants(query.shape[1], part.function, channels[0], tiling.num_splits)
            self.heads = Launch(head_kernel, (query.shape[2], query.shape[0]), constants)
        self.in_kernel = bool(function)
        # Addresses that 16 divides.
        self.starts = list(accumulate((-(-math.prod(shape) // 4) * 4 for shape in self.shapes), initial=0))
        self.is_derived = _is_derived(edit, rows)
        self.needs_ranges = call.mask is not None and needs_ranges(call.mask)
        self._fixed = self._fixed_arguments(rows, edit.head_gain)
        self._carved: tuple[Tensor | None, list[Tensor]] = (None, [])

    def _merge_shape(self, call: Call, splits: int) -> MergeShape:
        request, (batch, heads, queries, _) = self.request, call.query.shape
        rows = 0
        if request is not None:
            rows = queries if request.rows is None else len(request.rows.index)
        value_dim = 0 if call.value is None else call.value.shape[3]
        channels = self.channels.num_channels, value_dim, self.channels.num_stats_channels
        return MergeShape(batch, heads, queries, splits, *channels, rows)

    def __call__(
        self, operands: Operands, mask: Tensor | None, edit: AttentionEdit
    ) -> tuple[Tensor, Stats | None]:
        """Output (nothing without a value) and statistics."""
        fixed, ranges = self._fixed, _NO_RANGES
        if self.is_derived or self.needs_ranges:
            rows = self._call(operands, mask, edit).row_list(None, edited=self.changes, decoded=True)
            fixed = self._fixed_arguments(rows, edit.head_gain)
            found = ranges_of(mask, rows.row_bits, rows.column_bits)
            ranges = _NO_RANGES if found is None else column_arg(found.flatten(2))
        out, stats = self._launch(operands, ranges, *fixed)
        if self.request is None:
            return out, None
        if stats.shift is not None:
            parts = zip(StatsArg._fields, stats, strict=True)
            present = {name: part for name, part in parts if part is not None}
            return out, decoded_stats(self._call(operands, mask, edit), self.request, present)
        return out, Stats(*stats[:5])

    def _call(self, operands: Operands, mask: Tensor | None, edit: AttentionEdit) -> Call:
        value = None if operands.value is None else operands.value.ptr
        table, _, lengths = operands.pages
        pages = None if table is None else Pages(table, lengths)
        return Call(operands.query.ptr, operands.key.ptr, value, edit, mask, *self.options, pages)

    def _launch(
        self,
        operands: Operands,
        ranges: ColumnArg,
        split: tuple[Any, ...],
        merge: tuple[Any, ...],
        policy: PolicyArg,
    ) -> tuple[Tensor, StatsArg]:
        """Output and statistics."""
        query, key, value, pages, mask = operands
        tensor = query.ptr
        device = tensor.device
        results = [torch.empty_like(example) for example in self.examples]
        out_arg, out = None, _NOTHING
        if value is not None:
            out = results.pop(0)
            out_arg = MatrixArg(out, *self.out_strides)
        stats = StatsArg(*[None if slot is None else results[slot] for slot in self.slots])
        keys = key.ptr.shape[2]
        if pages.table_ptr is not None:
            keys *= pages.table_ptr.shape[1]
        if self.is_whole:
            sinks, stats_sinks, gain, index, active = merge[:5]
            whole = WholeArg(out_arg, stats, policy, sinks, stats_sinks, gain, index, active, self.stats_rows)
            self.split(None, None, None, whole, query, key, value, pages, mask, ranges, keys, *split)
            return out, stats
        partials = self._partials(device)
        sums, outputs = (None, None) if value is None else partials[:2]
        partial_stats = None if self.request is None else partials[-1]
        self.split(sums, outputs, partial_stats, None, query, key, value, pages, mask, ranges, keys, *split)
        if self.policy is not None and not self.in_kernel:
            policy = policy._replace(coefficients_ptr=self._coefficients(tensor, partials[0]))
        self.merge(out_arg, stats, sums, outputs, partial_stats, policy, *merge)
        return out, stats

    def _coefficients(self, query: Tensor, sums: Tensor) -> Tensor:
        """Coefficients [B, Hq, Lq, K] of a policy that `decode_merge_kernel` does not run itself."""
        assert self.policy is not None
        batch, heads, rows, _ = query.shape
        if self.heads is None:
            masses = merge_masses(sums, *self.sinks, (batch, heads, rows))
            return coefficients_of(self.policy, masses).contiguous()
        shape = batch, heads, rows, self.channels.num_channels
        coefficients = torch.empty(shape, dtype=torch.float32, device=query.device)
        sinks = sink_arg(*self.sinks)
        self.heads(coefficients, None, sums, sinks, self.numbers, self.shape.splits, heads, rows)
        return coefficients

    def _fixed_arguments(
        self, rows: RowList, head_gain: Tensor | None
    ) -> tuple[tuple[Any, ...], tuple[Any, ...], PolicyArg]:
        """Last arguments of the split kernel and of the merge kernel, and the policy without coefficients."""
        selected = column_arg(None if rows.selected is None else rows.selected[:, None])
        request = self.request
        selection = None if request is None else request.rows
        index, active = (None, None) if selection is None else (selection.index, selection.active)
        return (
            split_arguments(rows, self.channels, self.options[0], self.options[2]),
            merge_arguments(
                self.shape, *self.sinks, request is not None and request.edited, head_gain, index, active
            ),
            PolicyArg(self.numbers if self.in_kernel else None, None, selected),
        )

    def _partials(self, device: torch.device) -> list[Tensor]:
        """Room for the sums of the splits."""
        block = scratch.block(self.starts[-1], device)
        known, partials = self._carved
        if block is not known:
            parts = zip(self.starts, self.shapes, strict=False)
            partials = [block[start:].narrow(0, 0, math.prod(shape)).view(shape) for start, shape in parts]
            self._carved = block, partials
        return partials


def _is_derived(edit: AttentionEdit, rows: RowList) -> bool:
    """Whether the kernels read tensors that were computed from those of the edit."""
    channels = [edit.channels, None if edit.stats is None else edit.stats.channels]
    columns = [getattr(edit, name) for name in COLUMN_PARTS]
    columns += [part for c in channels if c is not None for part in (c.groups, c.weights)]
    copied = any(c is not None and c.stride(-1) != 1 and c.shape[-1] != 1 for c in columns)
    active = None if edit.rows is None else edit.rows.active
    selected = rows.selected
    own = selected is None or (active is not None and selected.data_ptr() == active.data_ptr())
    return copied or not own or bool(edit.unmask) or edit.windows is not None
