"""The Numba backend: single rows in one compiled call, everything else in torch.

What depends on the edit alone, its `Program`, is made in the first call and stored with the edit.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from regaze.kernels.numba import kernel as compiled
from regaze.kernels.numba.policy import address
from regaze.kernels.policies import MAX_CHANNELS, CompiledPolicy, constant, offers
from regaze.kernels.spec import AttentionEdit, Stats, StatsRequest
from regaze.kernels.torch_backend import attend_torch, attention_stats_torch

#: Elements of the keys above which the processor waits for memory, and torch's products have all threads.
MAX_KEY_ELEMENTS = 1 << 20

#: Parts of an edit that the kernel lacks.
_LACKING = ("head_mean_slope", "sink", "spread", "windows")


class Program(NamedTuple):
    """An edit as the kernel reads it.

    Attributes:
        numbers: [SIZE] int64, see kernel.py; `address` is theirs. tensors: those that `numbers` points to.
    """

    numbers: Tensor
    address: int
    tensors: tuple[Tensor, ...]


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
    options: dict[str, Any] = {"mask": mask, "scaling": scaling, "is_causal": is_causal}
    options |= {"softcap": softcap, "sinks": sinks}
    if softcap is not None or sinks is not None or not _fits(query, key, value, mask):
        return attend_torch(query, key, value, edit, **options)
    request, program, stats = edit.stats, _program(edit), None
    if program is None and request is not None:  # the output does not depend on what is reported
        request, program = None, _program(edit.without_stats)
        stats = None if program is None else attend_torch(query, key, value, edit, **options)[1]
    if program is None:
        return attend_torch(query, key, value, edit, **options)
    out = query.new_empty(*query.shape[:3], value.shape[3])
    found = _run(program, request, query, key, value, out, mask, scaling)
    return out, found if stats is None else stats


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
    program = None
    if softcap is None and sinks is None and _fits(query, key, key, mask):
        program = _program(request.as_edit)
    if program is None:
        options = {"mask": mask, "scaling": scaling, "is_causal": is_causal}
        return attention_stats_torch(query, key, request, softcap=softcap, sinks=sinks, **options)  # type: ignore[arg-type]
    stats = _run(program, request, query, key, key, None, mask, scaling)
    assert stats is not None
    return stats


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether a call is a single row per head, in fp32 and without gradients, over not too many keys."""
    if query.shape[2] != 1 or key.numel() > MAX_KEY_ELEMENTS:
        return False
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return False
    if mask is not None and (mask.dtype != torch.bool or mask.shape[1] != 1 or mask.stride(3) != 1):
        return False
    tensors = (query, key, value)
    return all(x.dtype == torch.float32 and x.stride(3) == 1 for x in tensors)


def _run(
    program: Program,
    request: StatsRequest | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor | None,
    mask: Tensor | None,
    scaling: float,
) -> Stats | None:
    batch, heads, _, dim = query.shape
    stats, addresses = _NO_STATS if request is None else _stats(request, query)
    compiled.attend_rows(
        program.address,
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        0 if out is None else out.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        *addresses,
        batch,
        heads,
        key.shape[1],
        key.shape[2],
        dim,
        value.shape[3],
        *query.stride()[:2],
        *key.stride()[:3],
        *value.stride()[:3],
        0 if mask is None or len(mask) == 1 else mask.stride(0),
        scaling,
    )
    return stats


_NO_STATS: tuple[Stats | None, tuple[int, ...]] = None, (0,) * 5


def _stats(request: StatsRequest, query: Tensor) -> tuple[Stats, tuple[int, ...]]:
    """Room for the requested statistics of [B, Hq, 1] rows, and its addresses."""
    rows = query.shape[:3]
    channels = request.channels
    masses = None if channels is None else query.new_empty(*rows, channels.count)
    entropy, top_weight, lse = (
        query.new_empty(rows) if wanted else None for wanted in (request.entropy, request.top1, request.lse)
    )
    top_column = query.new_empty(rows, dtype=torch.int64) if request.top1 else None
    order = masses, entropy, lse, top_weight, top_column
    addresses = tuple(0 if tensor is None else tensor.data_ptr() for tensor in order)
    return Stats(masses, entropy, top_weight, top_column, lse), addresses


def _program(edit: AttentionEdit) -> Program | None:
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
    numbers = [0] * compiled.SIZE
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
        places = (compiled.SLOPE, compiled.GAIN, compiled.BIAS, compiled.VALUE_GAIN)
        for place, tensor in zip(places, columns, strict=True):
            part(place, tensor)
        part(compiled.HEAD_SCORE_GAIN, edit.head_score_gain)
        part(compiled.ACTIVE, active, heads=False)
        numbers[compiled.CHANGES_SCORES] = int(edit.edits_scores)
    part(compiled.HEAD_GAIN, edit.head_gain)
    policy = edit.policy if acts else None
    if policy is not None and edit.channels is not None:
        assert edit.channels.groups is not None
        own = cast(CompiledPolicy, policy).numba_part()
        part(compiled.GROUPS, edit.channels.groups, heads=False)
        part(
            compiled.NUMBERS, constant(own.numbers or (0.0,), torch.device("cpu"), torch.float32), heads=False
        )
        numbers[compiled.POLICY], numbers[compiled.CHANNELS] = address(own.function), policy.channels
    if (request := edit.stats) is not None:
        numbers[compiled.REPORTS] = compiled.EDITED if request.edited else compiled.PLAIN
        if request.channels is not None:
            part(compiled.REPORTED_GROUPS, request.channels.groups, heads=False)
            numbers[compiled.REPORTED_CHANNELS] = request.channels.count
    if not all(_readable(tensor) for tensor in tensors):
        return None
    packed = torch.tensor(numbers)
    return Program(packed, packed.data_ptr(), tuple(tensors))


def _readable(tensor: Tensor) -> bool:
    """Whether compiled code can read a tensor: fp32 or bytes on the CPU, columns side by side."""
    dense = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    known = tensor.dtype in (torch.float32, torch.bool, torch.uint8)
    return tensor.is_cpu and known and dense and not tensor.requires_grad
