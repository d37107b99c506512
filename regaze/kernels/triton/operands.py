"""What the kernels for many query rows share beside `common.py`: row lists, matrices, visits of key blocks.

These kernels work on a *row list*: query rows 0..Lq-1, or some of them by number (edited rows, the rows
beside them, rows to report on), BLOCK_M of one head in a program. Nothing is gathered for that: a program
reads the numbers of its rows and addresses Q, masks and outputs by them. The numbers increase, so the rows of
one program see much the same keys.

On the host a row list is a `Scoring`: all tensors that its scores depend on, and how they are cut into tiles.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def,assignment"

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.triton.common import (
    EditArg,
    MaskArg,
    OpeningArg,
    WindowArg,
    column_tile,
    edit_scores,
    in_window,
    look,
    opened_rows,
    tile_scores,
)
from regaze.kernels.triton.custom_op import FUSED
from regaze.kernels.triton.plan import (
    column_arg,
    mask_arg,
    opening_arg,
    power_of_two,
    processors,
    unit_stride,
)

#: The most programs that share the keys of a row block, and the fewest key blocks worth a program.
MAX_SPLITS = 32
SPLIT_BLOCKS = 4


class MatrixArg(NamedTuple):
    """[B, H, L, D] with unit stride along D."""

    tensor: Any
    batch: int
    head: int
    row: int


class RowsArg(NamedTuple):
    """A row list: [R] int64 (None: row i is row i), and [B, R] bool, which the edit changes (None: all)."""

    numbers: Any
    chosen: Any
    length: int


class BlocksArg(NamedTuple):
    """A `BlockMap`: its two tensors, its strides in row blocks, and its number of key blocks."""

    order: Any
    counts: Any
    batch: int
    head: int
    length: int


class OwnArg(NamedTuple):
    """The key of each row itself, [B or 1, Hq or 1, Lq] int32."""

    tensor: Any
    batch: int
    head: int


class CallArg(NamedTuple):
    """What turns the products of queries and keys into scores."""

    mask: MaskArg
    unmask: OpeningArg
    windows: WindowArg
    own: OwnArg | None
    edit: EditArg
    scaling: float
    softcap: float | None
    queries: int
    keys: int


def matrix_arg(x: Tensor) -> MatrixArg:
    x = unit_stride(x)
    return MatrixArg(x, x.stride(0), x.stride(1), x.stride(2))


class Tiling(NamedTuple):
    """Query rows and keys of a tile, and how a program of it runs."""

    rows: int
    keys: int
    warps: int
    stages: int


@lru_cache(maxsize=256)
def tiling(rows: int, width: int, size: int, light: bool, device: torch.device) -> Tiling:
    """The tiling for a list of `rows`, for head dimensions up to `width`, in elements of `size` bytes.

    Large for rows of plain attention (`light`), small where an edit or statistics need registers too: 16-bit
    types of width up to 128 spill none. And so that shared memory suffices, of which GPUs of compute
    capability 9 and 10 have more than the 99 KiB of some others.
    """
    roomy = _has_room(device)
    if size > 2 or width > 128:
        most, keys = 32, 32
    elif light:
        most, keys = 128, 64 if roomy else 32
    else:
        most, keys = 64 if roomy else 32, 32
    block = min(most, power_of_two(max(16, rows)))
    return Tiling(block, keys, warps=8 if block == 128 else 4, stages=1 if size > 2 else 2)


def _has_room(device: torch.device) -> bool:
    if device.type != "cuda":  # the interpreter, which is faster with fewer tiles
        return True
    return torch.version.hip is None and torch.cuda.get_device_properties(device).major in (9, 10)


class Scoring(NamedTuple):
    """What the scores of a row list depend on. Operators take its `tensors` as one list, and its `tile`.

    Attributes:
        q, k, v: [B, Hq, Lq, D], [B, Hkv, Lk, D] and [B, Hkv, Lk, Dv]; v is None where no output is wanted.
        numbers: [R] int64, the rows; None: all.
        chosen: [B, R] bool, which of them the edit changes; None: all.
        mask: [B or 1, Hq or 1, Lq, Lk].
        row_bits, column_bits: unmask, see `plan.opening_bits`.
        span, early, own: windows, [B or 1, Hq] int64 keys that a head looks back, [B] int64 end of the first
            keys, which stay visible, and [B or 1, Hq or 1, Lq] int32 key of a row where a mask decides that.
        order, counts: the `BlockMap` of these rows; None where visibility follows from the row numbers.
        slope, gain, head_gain, bias, value_gain: the parts of the edit of these names.
        tile: how the kernels cut these rows and keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor | None = None
    numbers: Tensor | None = None
    chosen: Tensor | None = None
    mask: Tensor | None = None
    row_bits: Tensor | None = None
    column_bits: Tensor | None = None
    span: Tensor | None = None
    early: Tensor | None = None
    own: Tensor | None = None
    order: Tensor | None = None
    counts: Tensor | None = None
    slope: Tensor | None = None
    gain: Tensor | None = None
    head_gain: Tensor | None = None
    bias: Tensor | None = None
    value_gain: Tensor | None = None
    tile: Tiling = Tiling(64, 64, 4, 2)

    @property
    def rows(self) -> int:
        return self.q.shape[2] if self.numbers is None else self.numbers.shape[0]

    @property
    def sums_shape(self) -> tuple[int, int, int]:
        """[B, Hq, R]."""
        return self.q.shape[0], self.q.shape[1], self.rows

    def rows_arg(self) -> RowsArg:
        return RowsArg(self.numbers, self.chosen, self.rows)

    def blocks_arg(self) -> BlocksArg | None:
        if self.order is None or self.counts is None:
            return None
        batch, heads, rows, length = self.order.shape
        batch_step, head_step = heads * rows if batch > 1 else 0, rows if heads > 1 else 0
        return BlocksArg(self.order, self.counts, batch_step, head_step, length)

    def restricted(self) -> bool:
        """Whether more than the numbers of rows and keys decides what is visible."""
        return any(part is not None for part in (self.mask, self.row_bits, self.span))

    def call_arg(self, scaling: float, softcap: float | None) -> CallArg:
        head_gain = None if self.head_gain is None else self.head_gain[..., None]
        parts = (self.slope, self.gain, head_gain, self.bias, self.value_gain)
        edit = EditArg(*(column_arg(part) for part in parts))
        windows, own = WindowArg(), None
        if self.span is not None:
            windows = WindowArg(self.span, _shared_stride(self.span, 0) or None, self.early)
        if self.own is not None:
            own = OwnArg(self.own, _shared_stride(self.own, 0), _shared_stride(self.own, 1))
        mask, unmask = mask_arg(self.mask), opening_arg(self.row_bits, self.column_bits)
        sizes = self.q.shape[2], self.k.shape[2]
        return CallArg(mask, unmask, windows, own, edit, scaling, softcap, *sizes)

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None], tile: Sequence[int]) -> Scoring:
        """What an operator was given."""
        return cls(*tensors, Tiling(*tile))  # type: ignore[arg-type, call-arg]

    @property
    def tensors(self) -> list[Tensor | None]:
        return list(self[:-1])

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.q.shape[1] // self.k.shape[1]

    def splits(self) -> int:
        """Programs that share the keys of a row block: a few rows of a long prompt are to fill the device."""
        programs = triton.cdiv(self.rows, self.tile.rows) * self.q.shape[0] * self.q.shape[1]
        wanted = triton.cdiv(2 * processors(self.q.device), max(1, programs))
        return max(1, min(wanted, MAX_SPLITS, triton.cdiv(self.k.shape[2], self.tile.keys) // SPLIT_BLOCKS))

    def constants(self, causal: bool) -> dict[str, Any]:
        """The compile-time constants that every kernel over these rows takes."""
        tile = self.tile
        constants = {
            "D": self.q.shape[3],
            "BLOCK_D": padded(self.q.shape[3]),
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.keys,
            "CAUSAL": causal and self.mask is None,
            "PRECISION": "ieee",
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            **FUSED,
        }
        if torch.version.hip is None:
            constants["maxnreg"] = 255  # or ptxas spills some to fit one more program on a multiprocessor
        return constants


def _shared_stride(x: Tensor, dim: int) -> int:
    """Stride of a dimension of size B or H, 0 where it has size 1."""
    return x.stride(dim) if x.shape[dim] > 1 else 0


def padded(dim: int) -> int:
    """A head dimension as kernels see it: a power of two, at least the 16 of a matrix product."""
    return max(16, power_of_two(dim))


@triton.jit
def row_numbers(rows, at):
    """Numbers [M] of the rows at places `at` of a row list, and which of the places exist."""
    exists = at < rows.length
    if rows.numbers is not None:
        numbers = tl.load(rows.numbers + at, mask=exists, other=0).to(tl.int32)
    else:
        numbers = tl.where(exists, at, 0)
    return numbers, exists


@triton.jit
def chosen_places(rows, b, at, exists):
    """Which places of a row list the edit changes, [M, 1] bool."""
    if rows.chosen is not None:
        exists = tl.load(rows.chosen + b * rows.length + at, mask=exists, other=0) != 0
    return exists[:, None]


@triton.jit
def load_rows(x, b, h, numbers, exists, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows [M, BLOCK_D] of a matrix, 0 beyond D and where `exists` [M] is false."""
    d = tl.arange(0, BLOCK_D)
    at = x.tensor + b * x.batch + h * x.head + numbers[:, None].to(tl.int64) * x.row + d[None, :]
    return tl.load(at, mask=exists[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def load_block(
    x, b, h, start, end, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr
):
    """Rows `start`.. of a matrix, [BLOCK_N, BLOCK_D], 0 beyond D and, unless WHOLE, from row `end` on."""
    n, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    # Only the start of the block needs 64 bits; within it, narrow offsets save registers.
    at = x.tensor + b * x.batch + h * x.head + start.to(tl.int64) * x.row + (n[:, None] * x.row + d[None, :])
    if not WHOLE:
        tile = tl.load(at, mask=(n < end - start)[:, None] & (d < D)[None, :], other=0.0)
    elif D < BLOCK_D:
        tile = tl.load(at, mask=(d < D)[None, :], other=0.0)
    else:
        tile = tl.load(at)
    return tile


@triton.jit
def visible_tile(numbers, exists, columns, b, h, call, CAUSAL: tl.constexpr):
    """Which keys the rows may see, [M, N] bool, and what the mask adds to their scores."""
    inside = exists[:, None] & ((columns >= 0) & (columns < call.keys))[None, :]
    last = None
    if CAUSAL:
        last = (numbers + (call.keys - call.queries))[:, None]
    row_bits = opened_rows(call.unmask, b, numbers)
    rows = numbers[:, None].to(tl.int64)
    visible, added = look(inside, b, h, rows, columns, call.mask, call.unmask, row_bits, last)
    if call.windows.span is not None:
        own = numbers + (call.keys - call.queries)
        if call.own is not None:
            own = tl.load(call.own.tensor + b * call.own.batch + h * call.own.head + numbers)
        visible = visible & in_window(call.windows, b, h, own[:, None], columns)
    return visible, added


@triton.jit
def score_tile(
    q,
    k,
    numbers,
    exists,
    chosen,
    columns,
    b,
    h,
    call,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Edited scores [M, N] of q [M, D] and k [D, N]; -inf where hidden. Unless MASKED, nothing is hidden."""
    scores = tile_scores(q, k, call.scaling, call.softcap, PRECISION)
    visible = None
    if MASKED:
        visible, added = visible_tile(numbers, exists, columns, b, h, call, CAUSAL)
        scores += added
    scores = edit_scores(scores, call.edit, chosen, b, h, columns)
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    return scores


@triton.jit
def visits(blocks, block, b, h, numbers, exists, call, CAUSAL: tl.constexpr, BLOCK_N: tl.constexpr):
    """How many key blocks a row block sees wholly, and how many it visits: those, then the partly seen."""
    if blocks is not None:
        at = blocks.counts + (b * blocks.batch + h * blocks.head + block) * 2
        whole, every = tl.load(at), tl.load(at + 1)
    elif CAUSAL:
        end = numbers + (call.keys - call.queries + 1)
        least = tl.maximum(tl.min(tl.where(exists, end, call.keys), 0), 0)
        most = tl.maximum(tl.max(tl.where(exists, end, 0), 0), 0)
        whole, every = least // BLOCK_N, tl.cdiv(most, BLOCK_N)
    else:
        whole, every = call.keys // BLOCK_N, tl.cdiv(call.keys, BLOCK_N)
    return whole, every


@triton.jit
def visited(i, blocks, block, b, h):
    """Number of the key block at the i-th visit of a row block."""
    if blocks is not None:
        row = b * blocks.batch + h * blocks.head + block
        i = tl.load(blocks.order + row * blocks.length + i)
    return i


@triton.jit
def key_groups(arg, b, columns):
    """Group of each key, [N] uint8; keys beyond n are in group 0."""
    at = arg.groups + columns
    if arg.groups_batch is not None:
        at += b * arg.groups_batch
    return tl.load(at, mask=columns < arg.n, other=0)


@triton.jit
def free_weights(arg, b, columns, c: tl.constexpr):
    """Weights of free channel c, [N] fp32; 0 beyond n."""
    at = arg.weights + c * arg.weights_step + columns
    if arg.weights_batch is not None:
        at += b * arg.weights_batch
    return tl.load(at, mask=columns < arg.n, other=0.0).to(tl.float32)


@triton.jit
def row_coefficients(coefficients, at, exists, K: tl.constexpr):
    """Coefficients of K channels of rows, a tuple of K tiles [M]; `at` [M] counts rows of [B, Hq, R, K]."""
    loaded = ()
    for k in tl.static_range(K):
        loaded = loaded + (tl.load(coefficients + at * K + k, mask=exists, other=0.0),)  # noqa: RUF005
    return loaded


@triton.jit
def reweigh(weights, coefficients, channels, chosen, columns, b, h, call, G: tl.constexpr, K: tl.constexpr):
    """Softmax weights [M, N] times the channel coefficients and the value gain, where the edit has these."""
    edited = weights
    if K > 0:
        factor = tl.zeros([1, 1], tl.float32)
        if G > 0:
            group = key_groups(channels, b, columns)[None, :]
            for k in tl.static_range(G):
                factor = tl.where(group == k, coefficients[k][:, None], factor)
        for c in tl.static_range(K - G):
            factor += coefficients[G + c][:, None] * free_weights(channels, b, columns, c)[None, :]
        edited *= factor
    if call.edit.value_gain.tensor is not None:
        edited *= column_tile(call.edit.value_gain, b, h, columns, 1.0)
    return tl.where(chosen, edited, weights)
