"""Row lists: the query rows of one launch of the kernels for many rows, and what their scores depend on.

These kernels work on a *row list*: query rows 0..Lq-1, or some of them by number (edited rows, the rows
beside them, rows to report on), BLOCK_M of one head in a program. Nothing is gathered for that: a program
reads the numbers of its rows and addresses Q, masks and outputs by them. The numbers increase, so the rows of
one program see much the same keys.

`RowList` is the host's side. In device functions `offsets` [M] are places in the list, `rows` [M] the numbers
of the query rows there, `row_exists` [M] tells them from padding, `batch` and `head` are scalars.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def,assignment"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.triton.arguments import (
    EditArg,
    MaskArg,
    OwnKeyArg,
    UnmaskArg,
    WindowArg,
    column_arg,
    mask_arg,
    own_key_arg,
    unmask_arg,
    varying,
    window_arg,
)
from regaze.kernels.triton.common import (
    column_tile,
    edit_scores,
    tile_scores,
    unmask_row_bits,
    varied,
    visible_tile,
    window_tile,
)
from regaze.kernels.triton.custom_op import ROOMY
from regaze.kernels.triton.tiling import Tiling, padded, processors

#: The most programs that share the keys of a row block, and the fewest key blocks worth a program.
MAX_SPLITS = 32
MIN_SPLIT_BLOCKS = 4


class RowListArg(NamedTuple):
    """Row numbers [R] int64 (None: 0, 1, ..), and which of them the edit changes, [B, R] (None: all)."""

    row_index_ptr: Any
    selected_ptr: Any
    length: int


class BlockMapArg(NamedTuple):
    """The key blocks that row blocks visit, see block_mask.py; strides count row blocks."""

    order_ptr: Any
    counts_ptr: Any
    stride_b: int
    stride_h: int
    num_key_blocks: int


class ScoreArg(NamedTuple):
    """What turns the products of queries and keys into scores."""

    mask: MaskArg
    unmask: UnmaskArg
    windows: WindowArg
    own_key: OwnKeyArg | None
    edit: EditArg
    scaling: float
    softcap: float | None
    num_queries: int
    num_keys: int


class RowList(NamedTuple):
    """Query rows and all that their scores depend on; operators take its `tensors`, a list, and its `tiling`.

    Attributes:
        query, key, value: [B, Hq, Lq, D], [B, Hkv, Lk, D] and [B, Hkv, Lk, Dv]; no value where no output is
            computed.
        row_index: [R] int64, the numbers of the rows; None: all.
        selected: [B, R] bool, which of them the edit changes; None: all.
        mask: [B or 1, Hq or 1, Lq, Lk].
        row_bits, column_bits: unmask, see `arguments.unmask_bits`.
        span, sink_end, own_key: windows, [B or 1, Hq] int64 keys that a head looks back, [B] int64 end of the
            first keys, which stay visible, and [B or 1, Hq or 1, Lq] int32 key of a row where a mask decides
            that.
        order, counts: the block map of these rows; None where visibility follows from the row numbers.
        score_slope, score_gain, head_score_gain, bias, value_gain: these parts of the edit.
        block_table, lengths: [B, n] and [B], where key and value are caches [P, Hkv, page, D or Dv] in pages
            (the split kernel alone reads these).
        tiling: how the kernels cut these rows and keys.
    """

    query: Tensor
    key: Tensor
    value: Tensor | None = None
    row_index: Tensor | None = None
    selected: Tensor | None = None
    mask: Tensor | None = None
    row_bits: Tensor | None = None
    column_bits: Tensor | None = None
    span: Tensor | None = None
    sink_end: Tensor | None = None
    own_key: Tensor | None = None
    order: Tensor | None = None
    counts: Tensor | None = None
    score_slope: Tensor | None = None
    score_gain: Tensor | None = None
    head_score_gain: Tensor | None = None
    bias: Tensor | None = None
    value_gain: Tensor | None = None
    block_table: Tensor | None = None
    lengths: Tensor | None = None
    tiling: Tiling = Tiling(64, 64, 4, 2)

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None], tiling: Sequence[int]) -> RowList:
        """The row list that an operator was given."""
        return cls(*tensors, Tiling(*tiling))  # type: ignore[arg-type, call-arg]

    @property
    def tensors(self) -> list[Tensor | None]:
        return list(self[:-1])

    @property
    def num_rows(self) -> int:
        return self.query.shape[2] if self.row_index is None else self.row_index.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """[B, Hq, R]."""
        return self.query.shape[0], self.query.shape[1], self.num_rows

    @property
    def page_size(self) -> int:
        """Keys of a page; 0 for keys that are in none."""
        return 0 if self.block_table is None else self.key.shape[2]

    @property
    def num_keys(self) -> int:
        """Keys of a sample, or as many as its row of the block table can name."""
        keys = self.key.shape[2]
        return keys if self.block_table is None else self.block_table.shape[1] * keys

    @property
    def gqa_ratio(self) -> int:
        """Query heads that share a key head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def edits_columns(self) -> bool:
        """Whether the edit has a part that is read per key."""
        parts = (self.score_slope, self.score_gain, self.head_score_gain, self.bias, self.value_gain)
        return any(part is not None for part in parts)

    @property
    def needs_block_map(self) -> bool:
        """Whether more than the numbers of rows and keys decides what is visible."""
        return any(part is not None for part in (self.mask, self.row_bits, self.span))

    @property
    def num_splits(self) -> int:
        """Programs that share the keys of a row block: a few rows of a long prompt are to fill the device."""
        tiling = self.tiling
        programs = triton.cdiv(self.num_rows, tiling.block_m) * self.query.shape[0] * self.query.shape[1]
        desired = triton.cdiv(2 * processors(self.query.device), max(1, programs))
        key_blocks = triton.cdiv(self.key.shape[2], tiling.block_n)
        return max(1, min(desired, MAX_SPLITS, key_blocks // MIN_SPLIT_BLOCKS))

    def rows_arg(self) -> RowListArg:
        return RowListArg(self.row_index, self.selected, varying(self.num_rows))

    def blocks_arg(self) -> BlockMapArg | None:
        if self.order is None or self.counts is None:
            return None
        batch, heads, row_blocks, key_blocks = self.order.shape
        stride_b, stride_h = heads * row_blocks if batch > 1 else 0, row_blocks if heads > 1 else 0
        return BlockMapArg(self.order, self.counts, *map(varying, (stride_b, stride_h, key_blocks)))

    def score_arg(self, scaling: float, softcap: float | None) -> ScoreArg:
        head_score_gain = None if self.head_score_gain is None else self.head_score_gain[..., None]
        parts = (self.score_slope, self.score_gain, head_score_gain, self.bias, self.value_gain)
        return ScoreArg(
            mask_arg(self.mask),
            unmask_arg(self.row_bits, self.column_bits),
            window_arg(self.span, self.sink_end),
            own_key_arg(self.own_key),
            EditArg(*(column_arg(part) for part in parts)),
            scaling,
            softcap,
            num_queries=varying(self.query.shape[2]),
            num_keys=varying(self.key.shape[2]),
        )

    def constants(self, causal: bool) -> dict[str, Any]:
        """The compile-time constants that every kernel over these rows takes."""
        tiling = self.tiling
        return {
            "HEAD_DIM": self.query.shape[3],
            "BLOCK_D": padded(self.query.shape[3]),
            "BLOCK_M": tiling.block_m,
            "BLOCK_N": tiling.block_n,
            "IS_CAUSAL": causal and self.mask is None,
            "INPUT_PRECISION": "ieee",
            "num_warps": tiling.num_warps,
            "num_stages": tiling.num_stages,
            **ROOMY,
        }


@triton.jit
def load_row_numbers(row_list, offsets):
    """Numbers [M] of the query rows at places `offsets` of a row list, and which of the places exist."""
    row_exists = offsets < varied(row_list.length)
    if row_list.row_index_ptr is not None:
        rows = tl.load(row_list.row_index_ptr + offsets, mask=row_exists, other=0).to(tl.int32)
    else:
        rows = tl.where(row_exists, offsets, 0)
    return rows, row_exists


@triton.jit
def load_selected(row_list, batch, offsets, row_exists):
    """Which places of a row list the edit changes, [M, 1] bool."""
    selected = row_exists
    if row_list.selected_ptr is not None:
        ptrs = row_list.selected_ptr + batch * varied(row_list.length) + offsets
        selected = tl.load(ptrs, mask=row_exists, other=0) != 0
    return selected[:, None]


@triton.jit
def load_rows(matrix, batch, head, rows, row_exists, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows [M, BLOCK_D] of a matrix, 0 beyond HEAD_DIM and where `row_exists` [M] is false."""
    d = tl.arange(0, BLOCK_D)
    base = matrix.ptr + batch * matrix.stride_b + head * matrix.stride_h
    ptrs = base + rows[:, None].to(tl.int64) * matrix.stride_l + d[None, :]
    return tl.load(ptrs, mask=row_exists[:, None] & (d < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def load_key_block(
    matrix,
    batch,
    head,
    start,
    end,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_FULL: tl.constexpr,
):
    """Keys or values `start`.., [BLOCK_N, BLOCK_D], 0 beyond HEAD_DIM and, unless IS_FULL, from `end` on."""
    n, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    base = matrix.ptr + batch * matrix.stride_b + head * matrix.stride_h
    # Only the start of the block needs 64 bits; within it, narrow offsets save registers.
    ptrs = base + start.to(tl.int64) * matrix.stride_l + (n[:, None] * matrix.stride_l + d[None, :])
    if not IS_FULL:
        tile = tl.load(ptrs, mask=(n < end - start)[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_DIM < BLOCK_D:
        tile = tl.load(ptrs, mask=(d < HEAD_DIM)[None, :], other=0.0)
    else:
        tile = tl.load(ptrs)
    return tile


@triton.jit
def row_visibility(rows, row_exists, columns, batch, head, score, IS_CAUSAL: tl.constexpr):
    """Which keys the rows may see, [M, N] bool, and what the mask adds to their scores."""
    inside = row_exists[:, None] & ((columns >= 0) & (columns < varied(score.num_keys)))[None, :]
    last_key = None
    if IS_CAUSAL:  # the last row sits at the last key
        last_key = (rows + (varied(score.num_keys) - varied(score.num_queries)))[:, None]
    row_bits = unmask_row_bits(score.unmask, batch, rows)
    visible, added = visible_tile(
        inside, None, batch, head, rows[:, None], columns, score.mask, score.unmask, row_bits,
        last_key,
    )  # fmt: skip
    if score.windows.span_ptr is not None:
        own_key = rows + (varied(score.num_keys) - varied(score.num_queries))
        if score.own_key is not None:
            ptrs = score.own_key.ptr + batch * varied(score.own_key.stride_b)
            own_key = tl.load(ptrs + head * varied(score.own_key.stride_h) + rows)
        visible = visible & window_tile(score.windows, batch, head, own_key[:, None], columns)
    return visible, added


@triton.jit
def edited_scores(
    query,
    key,
    rows,
    row_exists,
    selected,
    columns,
    batch,
    head,
    score,
    IS_MASKED: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Edited scores [M, N] of query [M, D] and key [D, N]; -inf where hidden.

    Unless IS_MASKED, nothing is hidden and no mask is read.
    """
    scores = tile_scores(query, key, score.scaling, score.softcap, INPUT_PRECISION)
    visible = None
    if IS_MASKED:
        visible, added = row_visibility(rows, row_exists, columns, batch, head, score, IS_CAUSAL)
        scores += added
    scores = edit_scores(scores, score.edit, selected, batch, head, columns)
    if IS_MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    return scores


@triton.jit
def map_row(block_map, row_block, batch, head):
    """Place of a row block in the block map."""
    return batch * varied(block_map.stride_b) + head * varied(block_map.stride_h) + row_block


@triton.jit
def block_counts(
    block_map, row_block, batch, head, rows, row_exists, score, IS_CAUSAL: tl.constexpr, BLOCK_N: tl.constexpr
):
    """How many key blocks a row block sees in full, and how many it visits: those, then the partly seen."""
    if block_map is not None:
        ptrs = block_map.counts_ptr + map_row(block_map, row_block, batch, head) * 2
        num_full, num_visited = tl.load(ptrs), tl.load(ptrs + 1)
    elif IS_CAUSAL:
        # A block is full where the first of the rows sees all of it, and visited where the last sees any.
        key_end = rows + (varied(score.num_keys) - varied(score.num_queries) + 1)
        first_end = tl.maximum(tl.min(tl.where(row_exists, key_end, varied(score.num_keys)), 0), 0)
        last_end = tl.maximum(tl.max(tl.where(row_exists, key_end, 0), 0), 0)
        num_full, num_visited = first_end // BLOCK_N, tl.cdiv(last_end, BLOCK_N)
    else:
        num_full, num_visited = varied(score.num_keys) // BLOCK_N, tl.cdiv(varied(score.num_keys), BLOCK_N)
    return num_full, num_visited


@triton.jit
def visited_block(i, block_map, row_block, batch, head):
    """Number of the key block at the i-th visit of a row block."""
    if block_map is not None:
        row = map_row(block_map, row_block, batch, head)
        i = tl.load(block_map.order_ptr + row * varied(block_map.num_key_blocks) + i)
    return i


@triton.jit
def load_groups(channels, batch, columns):
    """Group of each key, [N] uint8; keys beyond the named ones are in group 0."""
    ptrs = channels.groups_ptr + columns
    if channels.stride_gb is not None:
        ptrs += batch * varied(channels.stride_gb)
    return tl.load(ptrs, mask=columns < varied(channels.num_columns), other=0)


@triton.jit
def load_weights(channels, batch, columns, c: tl.constexpr):
    """Weights of free channel c, [N] fp32; 0 beyond the named keys."""
    ptrs = channels.weights_ptr + c * varied(channels.stride_wc) + columns
    if channels.stride_wb is not None:
        ptrs += batch * varied(channels.stride_wb)
    return tl.load(ptrs, mask=columns < varied(channels.num_columns), other=0.0).to(tl.float32)


@triton.jit
def load_coefficients(coefficients_ptr, offsets, row_exists, NUM_CHANNELS: tl.constexpr):
    """Coefficients of rows, a tuple of NUM_CHANNELS tiles [M]; `offsets` [M] count rows of [B, Hq, R, K]."""
    loaded = ()
    for k in tl.static_range(NUM_CHANNELS):
        ptrs = coefficients_ptr + offsets * NUM_CHANNELS + k
        loaded = loaded + (tl.load(ptrs, mask=row_exists, other=0.0),)  # noqa: RUF005 (Triton: no unpacking)
    return loaded


@triton.jit
def reweight(
    weights,
    coefficients,
    channels,
    selected,
    columns,
    batch,
    head,
    score,
    NUM_GROUPS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
):
    """Softmax weights [M, N] times the channel coefficients and the value gain, where the edit has these."""
    edited = weights
    if NUM_CHANNELS > 0:
        # The factor of a key is sum_k coef_k u_k[j]: that of its group, plus those of the free channels.
        factor = tl.zeros([1, 1], tl.float32)
        if NUM_GROUPS > 0:
            group = load_groups(channels, batch, columns)[None, :]
            for k in tl.static_range(NUM_GROUPS):
                factor = tl.where(group == k, coefficients[k][:, None], factor)
        for c in tl.static_range(NUM_CHANNELS - NUM_GROUPS):
            factor += (
                coefficients[NUM_GROUPS + c][:, None] * load_weights(channels, batch, columns, c)[None, :]
            )
        edited *= factor
    if score.edit.value_gain.ptr is not None:
        edited *= column_tile(score.edit.value_gain, batch, head, columns, 1.0)
    return tl.where(selected, edited, weights)
