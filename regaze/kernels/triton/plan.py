"""The host's side of the kernels: how to cut the work, and edits as kernel arguments; nothing waits for a
device.

What a launch looks like depends on shapes alone, never on values, so that a captured CUDA graph replays it
for every step: the number of splits follows the key length rounded up to a power of two, and how many of
those keys are visible is read from the mask on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from regaze.kernels.spec import RowSelection, UnmaskRect
from regaze.kernels.triton.common import ChannelArg, ColumnArg, MaskArg, OpeningArg

#: Thread blocks wanted per multiprocessor: enough loads in flight to keep the memory busy.
BLOCKS_PER_PROCESSOR = 2
MAX_SPLITS = 128


@dataclass(frozen=True)
class DecodePlan:
    """How one decode call is cut.

    Attributes:
        rows: M, query rows of a program: the query group times Lq, padded, or a part of it.
        tiles: programs that share the keys of one key head because its rows exceed M.
        keys: N, keys of one step.
        splits: programs along the keys.
        warps, stages: of the split kernel.
    """

    rows: int
    tiles: int
    keys: int
    splits: int
    warps: int
    stages: int


@lru_cache(maxsize=4096)
def decode_plan(
    batch: int,
    kv_heads: int,
    rows: int,
    keys: int,
    width: int,
    channels: int,
    edited: bool,
    recorded: bool,
    size: int,
    processors: int,
) -> DecodePlan:
    """The plan for `rows` = Hq / Hkv * Lq packed rows over at most `keys` keys, see `length_bucket`.

    `width` is the larger head dimension, padded; `channels` those that carry outputs, padded; `edited`
    whether columns are edited, `recorded` whether statistics are kept; `size` the bytes of an element of K.
    Up to width 128 a program fits into its registers and into the 99 KiB of shared memory that a GPU of
    compute capability 8 has at least (tests/kernels/triton/test_compile.py).
    """
    small, light, heavy = width <= 128 and size <= 2, not edited and not recorded, edited and recorded
    tile = min(max(16, 64 // channels) if small and light else 16, max(16, power_of_two(rows)))
    tiles = -(-rows // tile)
    step, stages = 32, 3 if small and tile == 16 else 2
    if small and light and channels == 1:
        step = 64
    elif heavy and size > 2:
        step, stages = 16, 1
    wanted = -(-BLOCKS_PER_PROCESSOR * processors // (batch * kv_heads * tiles))
    splits = max(1, min(wanted, MAX_SPLITS, -(-keys // step)))
    return DecodePlan(tile, tiles, step, splits, warps=8 if heavy or size > 2 else 4, stages=stages)


def length_bucket(keys: int) -> int:
    """Key length rounded up to a power of two: a growing cache changes the plan O(log length) times."""
    return power_of_two(keys)


def power_of_two(n: int) -> int:
    """The least power of two that is at least n >= 1."""
    return 1 << (n - 1).bit_length()


@torch.compiler.assume_constant_result
def processors(device: torch.device) -> int:
    """Multiprocessors of a device; a few for the interpreter, so that it has splits to merge."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


# --- edits as kernel arguments


def column_arg(tensor: Tensor | None) -> ColumnArg:
    """A column tensor [B or 1, Hq or 1, n]."""
    if tensor is None:
        return ColumnArg()
    tensor = unit_stride(tensor)
    return ColumnArg(tensor, _stride(tensor, 0), _stride(tensor, 1), tensor.shape[2])


def channel_arg(groups: Tensor | None, weights: Tensor | None) -> ChannelArg:
    """Groups [B or 1, n] uint8 and free weights [C, B or 1, n]."""
    arg = ChannelArg()
    if groups is not None:
        groups = unit_stride(groups)
        arg = arg._replace(groups=groups, groups_batch=_stride(groups, 0), n=groups.shape[1])
    if weights is not None:
        weights = unit_stride(weights)
        steps = {"weights_batch": _stride(weights, 1), "weights_step": weights.stride(0)}
        arg = arg._replace(weights=weights, n=weights.shape[2], **steps)
    return arg


def mask_arg(mask: Tensor | None) -> MaskArg:
    """A mask [B or 1, Hq or 1, Lq, Lk] of any strides, of dimensions that are expanded too."""
    if mask is None:
        return MaskArg()
    floor = 0.0
    if mask.dtype == torch.float64:  # what hides a key is lost in fp32, unless it becomes fp32's own minimum
        mask = mask.clamp_min(torch.finfo(torch.float32).min).float()
    if mask.dtype != torch.bool:
        floor = torch.finfo(mask.dtype).min / 2
    return MaskArg(mask, _stride(mask, 0), _stride(mask, 1), mask.stride(2), mask.stride(3), floor)


def opening_arg(rows: Tensor | None, columns: Tensor | None) -> OpeningArg:
    """What `opening_bits` gave."""
    if rows is None or columns is None:
        return OpeningArg()
    return OpeningArg(rows, _stride(rows, 0), columns, _stride(columns, 0), columns.shape[1])


def _stride(tensor: Tensor, dim: int) -> int | None:
    """Stride of a dimension that may have size 1 or be expanded: None if so."""
    return tensor.stride(dim) or None if tensor.shape[dim] > 1 else None


def opening_bits(unmask: Sequence[UnmaskRect]) -> tuple[Tensor | None, Tensor | None]:
    """Rows [B or 1, Lq] and columns [B or 1, n] of up to 63 unmask as int64, one bit for each opening."""
    if not unmask:
        return None, None
    return _bits([o.rows for o in unmask]), _bits([o.columns for o in unmask])


def _bits(flags: Sequence[Tensor]) -> Tensor:
    """Bool tensors [B or 1, n_i] as bits of one [B or 1, max n_i] int64 tensor."""
    shape = max(f.shape[0] for f in flags), max(f.shape[1] for f in flags)
    bits = torch.zeros(shape, dtype=torch.int64, device=flags[0].device)
    for i, flag in enumerate(flags):
        bits[:, : flag.shape[1]] |= flag.long() << i
    return bits


def chosen_rows(rows: RowSelection | None, queries: int) -> Tensor | None:
    """A selection of query rows as [B or 1, Lq] bool, None for all rows."""
    if rows is None or (rows.active is None and len(rows.index) == queries):
        return None
    if rows.active is not None and len(rows.index) == queries:
        return rows.active
    batch = 1 if rows.active is None else rows.active.shape[0]
    chosen = torch.zeros(batch, queries, dtype=torch.bool, device=rows.index.device)
    active = chosen.new_ones(1, len(rows.index)) if rows.active is None else rows.active
    return chosen.index_copy_(1, rows.index, active)


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy of it, with stride 1 along the last dimension."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
