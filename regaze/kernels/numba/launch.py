"""The Numba backend: single rows in one compiled call, everything else in torch.

What depends on the edit alone, its `Program`, is made in the first call and stored with the edit.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from regaze.kernels.numba import kernel
from regaze.kernels.numba.policy import address
from regaze.kernels.numba.threads import run_calls
from regaze.kernels.policies import MAX_CHANNELS, CompiledPolicy, constant, offers
from regaze.kernels.spec import AttentionEdit, Stats, StatsRequest
from regaze.kernels.torch_backend import attend_torch, attention_stats_torch

#: Elements of the keys above which the processor waits for memory, and torch's products have all threads.
MAX_KEY_ELEMENTS = 1 << 20

#: Query, key, scaling and further options of a call for statistics.
_Layer = tuple[Tensor, Tensor, float, dict[str, Any]]

#: Parts of an edit that the kernel lacks.
_LACKING = ("head_mean_slope", "sink", "spread", "windows")


class Program(NamedTuple):
    """An edit as the kernel reads it.

    Attributes:
        numbers: SIZE of them, int64, see kernel.py; `address` is theirs. tensors: what they point to.
        rooms: by their shape, room for statistics that is not in use yet, see `_room`.
    """

    numbers: array[int]
    address: int
    tensors: tuple[Tensor, ...]
    rooms: dict[tuple[int, ...], list[Room]]


class Room(NamedTuple):
    """Memory for the statistics of a launch, and its addresses in the order of the kernel; 0 for none."""

    stats: Stats
    addresses: tuple[int, ...]


def attend_numba(
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
    request, stats = edit.stats, None
    options: dict[str, Any] = {"mask": mask, "scaling": scaling, "is_causal": is_causal}
    if softcap is None and sinks is None and _fits(query, key, value, mask):
        program = program_of(edit)
        if program is None and request is not None:  # the output does not depend on what is reported
            request, program = None, program_of(edit.without_stats)
            if program is not None:
                stats = attend_torch(query, key, value, edit, **options)[1]
        if program is not None:
            batch, heads, _, _ = query.shape
            out = query.new_empty(batch, heads, 1, value.shape[3])
            addresses = _NO_STATS
            if request is not None:
                stats, addresses = _room(program, request, (batch, heads))
            tensors = query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr()
            numbers = *_shown(mask), *addresses, *_sizes(query, key, value), 0, *_IN_ONE_PIECE, scaling
            kernel.attend_calls(kernel.CALL.pack(program.address, *tensors, *numbers), 1)
            return out, stats
    return attend_torch(query, key, value, edit, softcap=softcap, sinks=sinks, **options)


def attention_stats_numba(
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
    options: dict[str, Any] = {"mask": mask, "is_causal": is_causal, "softcap": softcap, "sinks": sinks}
    found = _measured([(query, key, scaling, options)], request, query.shape[:2])
    if found is not None:
        return found
    return attention_stats_torch(query, key, request, scaling=scaling, **options)


def stats_of_layers_numba(layers: Sequence[_Layer], request: StatsRequest) -> Stats | None:
    """Statistics of plain attention in several layers, [layers, ...], in one launch.

    None where the kernel lacks something, or where not all layers have as many heads.

    Args:
        layers: query, key, scaling and further options of `attention_stats_numba`.
    """
    return _measured(layers, request, (len(layers), *layers[0][0].shape[:2]))


def _measured(layers: Sequence[_Layer], request: StatsRequest, shape: tuple[int, ...]) -> Stats | None:
    """Statistics of layers in memory of a shape, which ends in batch and heads."""
    program = program_of(request.as_edit)
    if program is None:
        return None
    *_, batch, heads = shape
    stats, addresses = _room(program, request, shape)
    calls: list[bytes] = []
    known = None  # of the layer before, which is like this one most of the time
    for query, key, scaling, options in layers:
        mask, lacking = options["mask"], options["softcap"] is not None or options["sinks"] is not None
        layout = query.shape, query.stride(), query.dtype, key.shape, key.stride(), key.dtype, id(mask)
        if lacking or layout != known or torch.is_grad_enabled():
            if lacking or not _fits(query, key, key, mask) or query.shape[:2] != (batch, heads):
                return None
            known, sizes = layout, _sizes(query, key, key)
        tensors = program.address, query.data_ptr(), key.data_ptr(), 0, 0
        first_row = len(calls) * batch * heads
        calls.append(
            kernel.CALL.pack(*tensors, *_shown(mask), *addresses, *sizes, first_row, *_IN_ONE_PIECE, scaling)
        )
    run_calls(calls, sum(key.numel() for _, key, _, _ in layers))
    return stats


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether a call is a single row per head, in fp32 and without gradients, over not too many keys."""
    if query.shape[2] != 1 or key.numel() > MAX_KEY_ELEMENTS:
        return False
    if query.dtype != _FLOAT or key.dtype != _FLOAT or value.dtype != _FLOAT:
        return False
    if query.stride(3) != 1 or key.stride(3) != 1 or value.stride(3) != 1:
        return False
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return False
    return mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1 and mask.stride(3) == 1)


def _sizes(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, ...]:
    """Sizes and strides of a call in the kernel's order."""
    batch, heads, _, dim = query.shape
    _, kv_heads, keys, value_dim = value.shape
    sizes = batch, heads, kv_heads, keys, dim, value_dim
    return *sizes, *query.stride()[:2], *key.stride(), *value.stride()[:3]


def _shown(mask: Tensor | None) -> tuple[int, int]:
    """The address of a mask and its stride over samples."""
    return (0, 0) if mask is None else (mask.data_ptr(), mask.stride(0) if len(mask) > 1 else 0)


_FLOAT = torch.float32
_NO_STATS: tuple[int, ...] = (0,) * 5
#: Of a call whose keys are not in pages.
_IN_ONE_PIECE: tuple[int, ...] = (0,) * 5

#: Calls for whose statistics there is room made at once: one operation of torch takes as long as the kernel.
_ROOMS = 64


def _room(program: Program, request: StatsRequest, shape: tuple[int, ...]) -> Room:
    """Room for the requested statistics of rows of a shape, which ends in batch and heads."""
    rooms = program.rooms.setdefault(shape, [])
    while True:
        try:
            return rooms.pop()
        except IndexError:  # there is none yet, or another thread has taken the last
            rooms += _make_rooms(request, shape, max(1, _ROOMS // prod(shape[:-2])))


def _make_rooms(request: StatsRequest, shape: tuple[int, ...], count: int) -> list[Room]:
    parts: list[Sequence[Tensor | None]] = []
    starts: list[Sequence[int]] = []

    def part(wanted: bool, *more: int, dtype: torch.dtype = _FLOAT) -> None:
        """One statistic of all launches."""
        if not wanted:
            parts.append([None] * count)
            starts.append([0] * count)
            return
        memory = torch.empty(count, *shape, 1, *more, dtype=dtype)
        start, size = memory.data_ptr(), memory.stride(0) * memory.element_size()
        parts.append(memory.unbind())
        starts.append([start + size * number for number in range(count)])

    channels = request.channels
    with torch.inference_mode(False):  # later launches use them, too
        part(channels is not None, 0 if channels is None else channels.count)
        for wanted in (request.entropy, request.lse, request.top1):
            part(wanted)
        part(request.top1, dtype=torch.int64)
    masses, entropy, lse, top_weight, top_column = parts
    stats = map(Stats, masses, entropy, top_weight, top_column, lse)
    return list(map(Room, stats, zip(*starts, strict=True)))


def program_of(edit: AttentionEdit) -> Program | None:
    """The program of an edit; None where it has parts that the kernel lacks."""
    cache = edit.backend_cache
    if "program" not in cache:
        with torch.inference_mode(False):  # stored with the edit, for later calls
            cache["program"] = _translated(edit) if _can_run(edit) else None
    return cast("Program | None", cache["program"])


def _can_run(edit: AttentionEdit) -> bool:
    if edit.unmask or edit.has_outstanding or any(getattr(edit, part) is not None for part in _LACKING):
        return False
    request = edit.stats
    if request is not None and (request.rows is not None or request.full_rows or request.columns is not None):
        return False
    for channels in (edit.channels, None if request is None else request.channels):
        if channels is not None and (channels.groups is None or channels.weights is not None):
            return False
    policy = edit.policy
    return policy is None or (policy.channels <= MAX_CHANNELS and offers(policy, "numba_part"))


def _translated(edit: AttentionEdit) -> Program | None:
    """The program of an edit that the kernel can run; None where its tensors have to be converted first.

    They are not copied: `AttentionEdit.overwrite` writes to them.
    """
    numbers = [0] * kernel.SIZE
    tensors: list[Tensor] = []

    def part(place: int, tensor: Tensor | None, heads: bool = True) -> None:
        """Enter [B or 1, Hq or 1, n], or without n, or without heads."""
        if tensor is None:
            return
        tensors.append(tensor)
        head = tensor.stride(1) if heads and tensor.shape[1] > 1 else 0
        sample = tensor.stride(0) if len(tensor) > 1 else 0
        numbers[place : place + 4] = tensor.data_ptr(), sample, head, tensor.shape[-1]

    active = None if edit.rows is None else edit.rows.active
    acts = edit.edits_rows and edit.selects_rows
    if acts:
        columns = (edit.score_slope, edit.score_gain, edit.bias, edit.value_gain)
        places = (kernel.SLOPE, kernel.GAIN, kernel.BIAS, kernel.VALUE_GAIN)
        for place, tensor in zip(places, columns, strict=True):
            part(place, tensor)
        part(kernel.HEAD_SCORE_GAIN, edit.head_score_gain)
        part(kernel.ACTIVE, active, heads=False)
        numbers[kernel.CHANGES_SCORES] = int(edit.edits_scores)
    part(kernel.HEAD_GAIN, edit.head_gain)
    policy = edit.policy if acts else None
    if policy is not None and edit.channels is not None:
        assert edit.channels.groups is not None
        own = cast(CompiledPolicy, policy).numba_part()
        part(kernel.GROUPS, edit.channels.groups, heads=False)
        part(kernel.NUMBERS, constant(own.numbers or (0.0,), torch.device("cpu"), torch.float32), heads=False)
        numbers[kernel.POLICY], numbers[kernel.CHANNELS] = address(own.function), policy.channels
    if (request := edit.stats) is not None:
        numbers[kernel.REPORTS] = kernel.EDITED if request.edited else kernel.PLAIN
        if request.channels is not None:
            part(kernel.REPORTED_GROUPS, request.channels.groups, heads=False)
            numbers[kernel.REPORTED_CHANNELS] = request.channels.count
    if not all(_readable(tensor) for tensor in tensors):
        return None
    packed = array("q", numbers)
    return Program(packed, packed.buffer_info()[0], tuple(tensors), {})


def _readable(tensor: Tensor) -> bool:
    """Whether compiled code can read a tensor: fp32 or bytes on the CPU, columns side by side."""
    dense = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    known = tensor.dtype in (torch.float32, torch.bool, torch.uint8)
    return tensor.is_cpu and known and dense and not tensor.requires_grad
