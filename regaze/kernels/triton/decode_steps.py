"""Device functions of the split kernel (decode.py): its packed rows, steps of its sums, and their storing."""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from regaze.kernels.triton.common import (
    channel_tile,
    column_tile,
    dot,
    softmax_step,
    varied,
    weighted_values,
)
from regaze.kernels.triton.splits import STATS_HEADER, SUMS_HEADER


@triton.jit
def select_rows(selected, row_exists, batch, rows):
    """Which rows [M, 1] the edit changes: those that exist, and that `selected` [B or 1, 1, Lq] selects."""
    if selected.ptr is not None:
        ptrs = selected.ptr + rows
        if selected.stride_b is not None:
            ptrs += batch * varied(selected.stride_b)
        row_exists = row_exists & (tl.load(ptrs) != 0)
    return row_exists


@triton.jit
def no_sums(
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DV: tl.constexpr, WIDTH: tl.constexpr,
    STATS_WIDTH: tl.constexpr,
):  # fmt: skip
    """What a split has before its first key: maximum, sum, masses, outputs, and the state of `stats_step`."""
    zeros = tl.zeros([BLOCK_M], tl.float32)
    running_max, masses = zeros - float("inf"), tl.zeros([WIDTH, BLOCK_M], tl.float32)
    output = tl.zeros([WIDTH * BLOCK_M, BLOCK_DV], tl.float32)
    stats_masses = tl.zeros([BLOCK_N // 16, BLOCK_M, STATS_WIDTH], tl.float32)
    stats = (running_max, zeros, zeros, tl.zeros([BLOCK_M], tl.int32), stats_masses)
    return running_max, zeros, masses, output, stats


@triton.jit
def keys_of(pages, batch, num_keys, PAGE_SIZE: tl.constexpr):
    """How many keys a sample has; with pages, `num_keys` is what its row of the table can name."""
    if PAGE_SIZE == 0:
        return num_keys
    else:
        return tl.minimum(num_keys, tl.load(pages.lengths_ptr + batch)).to(tl.int32)


@triton.jit
def key_places(pages, batch, start, key_exists, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """Where a cache has the keys start, start + 1, .. of a sample: block, first key in it, keys after that.

    Without pages (PAGE_SIZE 0) a block is a sample of the cache, else it is a page. Where tiles may cross the
    borders of pages, each key has its own block and first key, [N, 1].
    """
    n = tl.arange(0, BLOCK_N)[:, None]
    if PAGE_SIZE == 0:
        return batch, start, n
    else:
        table = pages.table_ptr + batch * varied(pages.stride_b)
        if PAGE_SIZE % BLOCK_N == 0:  # tiles start at multiples of their size
            return tl.load(table + start // PAGE_SIZE).to(tl.int64), start % PAGE_SIZE, n
        else:
            keys = start + n
            page = tl.load(table + keys // PAGE_SIZE, mask=key_exists[:, None], other=0)
            return page.to(tl.int64), keys % PAGE_SIZE, n * 0


@triton.jit
def load_cache(cache, places, head, key_exists, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Keys or values at the `places` (`key_places`) of a cache [B or P, H, Lk or page, D], [N, BLOCK_D]; 0
    beyond HEAD_DIM and where not `key_exists` [N].
    """
    block, first, n = places
    d = tl.arange(0, BLOCK_D)[None, :]
    ptrs = cache.ptr + block * cache.stride_b + head.to(tl.int64) * cache.stride_h
    # Only the start of the block needs 64 bits.
    ptrs += first.to(tl.int64) * cache.stride_l
    ptrs += n * cache.stride_l + d
    return tl.load(ptrs, mask=key_exists[:, None] & (d < HEAD_DIM), other=0.0)


@triton.jit
def stats_step(
    plain, visible, softmax, channels, batch, columns, state,
    NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    UNEDITED_STATS: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry the statistics of a softmax over one more tile.

    `softmax` is that of the edited scores: these, and the results of `softmax_step` for them. With
    UNEDITED_STATS a second online softmax runs over the unedited scores `plain`. `state` is (maximum, sum,
    entropy sum, top column, masses).
    """
    old_max, old_sum, entropy, top_column, masses = state
    scores, weights, rescale, new_max, new_sum = softmax
    if UNEDITED_STATS:
        scores = tl.where(visible, plain, float("-inf"))
        weights, rescale, new_max, new_sum = softmax_step(scores, old_max, old_sum)
    # The first of equals: later keys replace the column only with a larger score.
    first = tl.min(tl.where(scores == new_max[:, None], columns[None, :], 0x7FFFFFFF), 1)
    top_column = tl.where(new_max > old_max, first, top_column)
    # sum_j e^(s_j - m) (s_j - m): under a new maximum every earlier term shifts by (old - new).
    shifted = tl.where(old_sum > 0, (old_max - new_max) * old_sum, 0.0)
    below = tl.where(weights > 0, scores - new_max[:, None], 0.0)
    entropy = rescale * (entropy + shifted) + tl.sum(weights * below, 1)
    if NUM_CHANNELS > 0:
        # Every 16 keys of a tile have masses of their own, [N / 16, M, WIDTH]: each warp multiplies its keys.
        parts: tl.constexpr = weights.shape[1] // 16
        u = channel_tile(channels, batch, columns, WIDTH, NUM_GROUPS, NUM_CHANNELS)
        u = tl.permute(tl.reshape(u, [WIDTH, parts, 16]), [1, 2, 0])
        weights = tl.permute(tl.reshape(weights, [weights.shape[0], parts, 16]), [1, 0, 2])
        masses = masses * rescale[None, :, None] + dot(weights, u, INPUT_PRECISION)
    return new_max, new_sum, entropy, top_column, masses


@triton.jit
def weights_by_channel(
    weights, selected, channels, batch, columns,
    WIDTH: tl.constexpr, NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Weights [M, N] times u_k[j], [WIDTH, M, N]; rows that are not `selected` have all in channel 0."""
    if NUM_CHANNELS > 0:
        u = channel_tile(channels, batch, columns, WIDTH, NUM_GROUPS, NUM_CHANNELS)[:, None, :]
        unedited = (tl.arange(0, WIDTH) == 0).to(tl.float32)[:, None, None]
        return weights[None, :, :] * tl.where(selected[None, :, :], u, unedited)
    else:
        return weights[None, :, :]


@triton.jit
def output_step(
    weights, rescale, value, masses, output, selected, channels, value_gain, batch, heads, columns,
    WIDTH: tl.constexpr, NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry channel masses [WIDTH, M] and outputs [WIDTH * M, BLOCK_DV] over one more tile of values."""
    BLOCK_M: tl.constexpr = weights.shape[0]
    ROWS: tl.constexpr = WIDTH * BLOCK_M  # the channels are packed into the rows of one product with V
    parts = weights_by_channel(weights, selected, channels, batch, columns, WIDTH, NUM_GROUPS, NUM_CHANNELS)
    if NUM_CHANNELS > 0:
        masses = masses * rescale[None, :] + tl.sum(parts, 2)
    if value_gain.ptr is not None:
        gain = column_tile(value_gain, batch, heads, columns, 1.0)
        parts *= tl.where(selected, gain, 1.0)[None, :, :]
    parts = tl.reshape(parts, [ROWS, weights.shape[1]])
    reweighted: tl.constexpr = NUM_CHANNELS > NUM_GROUPS or value_gain.ptr is not None
    factor = tl.reshape(tl.broadcast_to(rescale[None, :], [WIDTH, BLOCK_M]), [ROWS])
    return masses, output * factor[:, None] + weighted_values(parts, value, reweighted, INPUT_PRECISION)


@triton.jit
def store_sums(
    sums_ptr, outputs_ptr, first_record, records, row_exists, sums,
    VALUE_DIM: tl.constexpr, NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Store a split's sums as records first_record + records [M]; their outputs are [WIDTH * M, BLOCK_DV]."""
    running_max, running_sum, masses, output = sums
    NUM_OUTPUTS: tl.constexpr = NUM_CHANNELS if NUM_CHANNELS > 0 else 1
    SIZE: tl.constexpr = SUMS_HEADER + NUM_CHANNELS
    ptrs = sums_ptr + first_record * SIZE + records * SIZE
    tl.store(ptrs, running_max, mask=row_exists)
    tl.store(ptrs + 1, running_sum, mask=row_exists)
    k = tl.arange(0, WIDTH)[:, None]
    if NUM_CHANNELS > 0:
        in_bounds = row_exists[None, :] & (k < NUM_CHANNELS)
        tl.store(ptrs[None, :] + SUMS_HEADER + k, masses, mask=in_bounds)
    d = tl.arange(0, BLOCK_DV)[None, :]
    output_rows = tl.reshape((records[None, :] * NUM_OUTPUTS + k) * VALUE_DIM, [output.shape[0]])[:, None]
    exists = tl.reshape(row_exists[None, :] & (k < NUM_OUTPUTS), [output.shape[0]])[:, None]
    first_output = outputs_ptr + first_record * NUM_OUTPUTS * VALUE_DIM
    tl.store(first_output + output_rows + d, output, mask=exists & (d < VALUE_DIM))


@triton.jit
def store_stats(
    stats_ptr, first_record, records, row_exists, state, NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Store the statistics of a split as records first_record + records [M]."""
    row_max, row_sum, entropy, top_column, masses = state
    SIZE: tl.constexpr = STATS_HEADER + NUM_CHANNELS
    ptrs = stats_ptr + first_record * SIZE + records * SIZE
    tl.store(ptrs, row_max, mask=row_exists)
    tl.store(ptrs + 1, row_sum, mask=row_exists)
    tl.store(ptrs + 2, entropy, mask=row_exists)
    tl.store(ptrs + 3, top_column.to(tl.float32), mask=row_exists)
    if NUM_CHANNELS > 0:
        k = tl.arange(0, WIDTH)[None, :]
        in_bounds = row_exists[:, None] & (k < NUM_CHANNELS)
        tl.store(ptrs[:, None] + STATS_HEADER + k, tl.sum(masses, 0), mask=in_bounds)


@triton.jit
def store_split(
    sums_ptr, outputs_ptr, stats_ptr, value, sums, stats, pair, packed, num_rows, row_exists,
    VALUE_DIM: tl.constexpr, NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_DV: tl.constexpr,
    HAS_STATS: tl.constexpr, STATS_CHANNELS: tl.constexpr, STATS_WIDTH: tl.constexpr,
):  # fmt: skip
    """Store what a split has of M rows: sums where there are values, statistics where these are requested.

    The rows are at places `packed` [M] among the `num_rows` of a pair of sample and key head.
    """
    split, num_splits = tl.program_id(1), tl.num_programs(1)
    first_record, records = pair.to(tl.int64) * num_rows * num_splits, packed * num_splits + split
    if value is not None:
        store_sums(
            sums_ptr, outputs_ptr, first_record, records, row_exists, sums,
            VALUE_DIM, NUM_CHANNELS, WIDTH, BLOCK_DV,
        )  # fmt: skip
    if HAS_STATS:
        store_stats(stats_ptr, first_record, records, row_exists, stats, STATS_CHANNELS, STATS_WIDTH)


@triton.jit
def pack_rows(num_kv_heads, num_queries, GQA_RATIO: tl.constexpr, BLOCK_M: tl.constexpr):
    """The rows of a program: all query rows of all query heads that share a key head, or a part of these.

    Returns the number of the pair of sample and key head, its parts, places [M] in the pair and which of
    these exist, and the query head and query row of each, [M, 1].
    """
    num_rows = GQA_RATIO * num_queries
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    pair, row_tile = tl.program_id(0) // row_tiles, tl.program_id(0) % row_tiles
    batch, kv_head = (pair // num_kv_heads).to(tl.int64), pair % num_kv_heads
    packed = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_exists = packed < num_rows
    packed_row = tl.where(row_exists, packed, 0)
    heads = kv_head * GQA_RATIO + packed_row // num_queries  # the heads of a group are neighbours
    return pair, batch, kv_head, packed, row_exists, heads[:, None], (packed_row % num_queries)[:, None]


@triton.jit
def load_queries(query, batch, heads, rows, row_exists, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Query rows [M, BLOCK_D] of the heads and rows [M, 1]."""
    d = tl.arange(0, BLOCK_D)[None, :]
    ptrs = (
        query.ptr + batch * query.stride_b + heads.to(tl.int64) * query.stride_h + rows * query.stride_l + d
    )
    return tl.load(ptrs, mask=row_exists[:, None] & (d < HEAD_DIM), other=0.0)
