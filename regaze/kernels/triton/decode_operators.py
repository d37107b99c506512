"""A decode call as operators of torch: for compiled graphs, and for calls that no plan holds for.

Shapes alone decide what the operators launch. Partial sums pass between them as tensors from torch's
allocator, which hands every layer the memory that the layer before gave back, and which belongs to the graph
that captures them: there is no other state.
"""

from __future__ import annotations

from torch import Tensor

from regaze.kernels.policies import coefficients_of
from regaze.kernels.spec import Stats, StatsRequest
from regaze.kernels.triton.call import Call
from regaze.kernels.triton.decode import SplitChannels, decode_split
from regaze.kernels.triton.key_ranges import ranges_of
from regaze.kernels.triton.merge import decode_merge, merge_masses, requested_parts, stats_names
from regaze.kernels.triton.policy import head_coefficients, triton_part
from regaze.kernels.triton.weight_slices import row_slices


class DecodeCall:
    """One call with few query rows: which operators run, and on what."""

    def __init__(self, call: Call):
        edit, self.call = call.edit, call
        self.changes = edit.edits_rows and edit.selects_rows
        self.policy = edit.policy if self.changes else None
        self.rows = call.row_list(None, edited=self.changes, decoded=True)

    def run(self, request: StatsRequest | None) -> tuple[Tensor, Stats | None]:
        """The output (nothing without a value), and the statistics of the request."""
        call = self.call
        split = SplitChannels.of(call.edit, self.policy, request)
        ranges = ranges_of(call.mask, self.rows.row_bits, self.rows.column_bits)
        partials = iter(decode_split(self.rows.tensors, ranges, *split, **call.options))
        sums, outputs = (None, None) if call.value is None else (next(partials), next(partials))
        partial_stats = next(partials, None)
        coefficients, function, numbers = self._coefficients(sums)
        requested = requested_parts(request)
        selection = None if request is None else request.rows
        results = iter(
            decode_merge(
                call.query,
                sums,
                outputs,
                partial_stats,
                call.sinks,
                call.edit.sink,
                request is not None and request.edited,
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
        if request is None:
            return out, None
        names = stats_names(split.num_stats_channels, *requested)
        return out, decoded_stats(call, request, dict(zip(names, results, strict=True)))

    def _coefficients(self, sums: Tensor | None) -> tuple[Tensor | None, str, tuple[float, ...]]:
        """Coefficients [B, Hq, Lq, K] of the policy, or the device function and numbers that give them."""
        call, policy = self.call, self.policy
        if policy is None or sums is None:
            return None, "", ()
        sinks = call.sinks, call.edit.sink
        rows, part = call.query.shape[:3], triton_part(policy, call.query.shape[1])
        if part is None:
            return coefficients_of(policy, merge_masses(sums, *sinks, rows)).contiguous(), "", ()
        if part.couples_heads:
            shape = (*rows, policy.channels)
            given = head_coefficients(None, sums, *sinks, shape, part.function, part.numbers)
            return given, "", ()
        return None, part.function, part.numbers


def decoded_stats(call: Call, request: StatsRequest, stats: dict[str, Tensor]) -> Stats:
    """What a request is about from the merged statistics, by the names of `merge.StatsArg`."""
    slices = None
    if "shift" in stats:
        selection, edit = request.rows, call.edit
        index, active = (None, None) if selection is None else (selection.index, selection.active)
        edited = request.edited and edit.edits_rows and edit.selects_rows
        rows = call.row_list(index, edited=edited, mapped=False)
        shift, total = stats.pop("shift"), stats.pop("total")
        slices = row_slices(rows, shift, total, request.columns, active=active, **call.options)
    return Stats(**stats, slices=slices)
