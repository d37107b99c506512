"""How the work of a call is cut into programs, from shapes alone.

What a launch looks like never depends on values, so that a captured CUDA graph replays it for every step: the
number of splits follows the key length rounded up to a power of two, and how many of those keys are visible
is read from the mask on the device. The sizes of tiles come from the tuning table (tuning.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from regaze.kernels.triton.tuning import cut

MAX_DECODE_SPLITS = 128


class DecodeTiling(NamedTuple):
    """How one decode call is cut.

    Attributes:
        block_m: query rows of a program: the query group times Lq, padded, or a part of it.
        row_tiles: programs that share the keys of one key head because its rows exceed `block_m`.
        block_n: keys of one step.
        num_splits: programs along the keys.
        num_warps, num_stages: of the split kernel.
    """

    block_m: int
    row_tiles: int
    block_n: int
    num_splits: int
    num_warps: int
    num_stages: int


@lru_cache(maxsize=4096)
def decode_tiling(
    batch: int,
    kv_heads: int,
    rows: int,
    keys: int,
    width: int,
    channels: int,
    edited: bool,
    recorded: bool,
    element_size: int,
    processors: int,
    architecture: str,
    paged: bool = False,
) -> DecodeTiling:
    """The tiling for `rows` = Hq / Hkv * Lq packed rows over at most `keys` keys, see `length_bucket`.

    Up to width 128 a program fits into its registers and into the 99 KiB of shared memory that a GPU of
    compute capability 8 has at least (tests/kernels/triton/test_compile.py).

    Args:
        width: the larger head dimension, padded.
        channels: number of channels that carry outputs, padded.
        edited, recorded: whether columns are edited, whether statistics are computed.
        element_size: bytes of an element of K.
        processors, architecture: of the device.
        paged: whether keys and values are read by a block table.
    """
    facts = {"width": width, "element_size": element_size, "channels": channels, "rows": rows}
    found = cut(architecture, "decode", **facts, edited=edited, recorded=recorded)
    block_m = min(found["block_m"], max(16, power_of_two(rows)))
    row_tiles, block_n, num_stages = -(-rows // block_m), found["block_n"], found["num_stages"]
    if paged:
        num_stages = 2 * num_stages - 1  # a chain of loads shares them: the number of a page, its keys
        # With more keys in a step, their places do not fit into registers, too.
        if edited and recorded and element_size == 2:
            block_n = 16
        elif block_m > 32:
            block_n = min(block_n, 32)
    desired = -(-found["programs"] * processors // (batch * kv_heads * row_tiles))
    num_splits = max(1, min(desired, MAX_DECODE_SPLITS, -(-keys // block_n)))
    return DecodeTiling(block_m, row_tiles, block_n, num_splits, found["num_warps"], num_stages)


class Tiling(NamedTuple):
    """Query rows and keys of a tile of the kernels for many rows, and how a program of it runs."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@lru_cache(maxsize=256)
def tiling(
    rows: int,
    width: int,
    element_size: int,
    architecture: str,
    *,
    light: bool = False,
    masked: bool = False,
    columns: bool = False,
) -> Tiling:
    """The tiling for a list of `rows`, head dimensions up to `width` and elements of `element_size` bytes.

    Large for rows of plain attention (`light`), small where an edit or statistics need registers too: 16-bit
    types of width up to 128 spill none. A mask (`masked`) is read an element at a time, since its rows begin
    anywhere, and costs registers per element; even more so beside `columns` that are edited. And so that
    shared memory suffices, of which GPUs of compute capability 9 and 10 have more than the 99 KiB of some
    others.
    """
    facts = {"rows": rows, "width": width, "element_size": element_size}
    found = Tiling(**cut(architecture, "prefill", **facts, light=light, masked=masked, columns=columns))
    return found._replace(block_m=16) if rows <= 16 else found  # two sizes, so that few kernels get compiled


def length_bucket(keys: int) -> int:
    """Key length rounded up to a power of two: a growing cache changes the tiling O(log length) times."""
    return power_of_two(keys)


def power_of_two(n: int) -> int:
    """The least power of two that is at least n >= 1."""
    return 1 << (n - 1).bit_length()


def padded(dim: int) -> int:
    """A head dimension as kernels see it: a power of two, at least the 16 of a matrix product."""
    return max(16, power_of_two(dim))


@torch.compiler.assume_constant_result
def processors(device: torch.device) -> int:
    """Multiprocessors of a device; a few for the interpreter, so that it has splits to merge."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


@torch.compiler.assume_constant_result
def architecture(device: torch.device) -> str:
    """The name by which the tuning table knows a device."""
    if device.type != "cuda":
        return "interpreter"  # which is faster with fewer tiles
    facts = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(facts.gcnArchName)
    minor = 0 if facts.major == 10 else facts.minor  # 10.3 has the multiprocessor of 10.0
    return f"sm_{facts.major}{minor}"
