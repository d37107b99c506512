"""Split-KV decoding: edited attention of a few query rows over a long cache, and its statistics, in one pass.

At decode a layer is bound by reading K and V once. So the Hq / Hkv query heads that share a key head, times
the Lq rows, are packed into the BLOCK_M rows of one tile (padded to 16), whatever the ratio, and the keys are
cut into splits so that all multiprocessors read. A program (split, key head, sample) steps over its keys,
BLOCK_N at a time, and keeps for each row, as flash attention does, the running maximum m of the scores and
sums relative to it:

    sum     L   = sum_j e^(s_j - m)
    masses  L_k = sum_j e^(s_j - m) u_k[j]           for up to 4 channels u_k of a policy
    outputs O_k = sum_j e^(s_j - m) u_k[j] g_j v_j   with the channels packed into one product with V

The masses of all splits together give the policy its masses, and it gives coefficients c_k. The output of the
row is then sum_k c_k O_k / L, exactly what re-weighting the materialised row would give. Statistics ride
along: sum_j e^(s_j - m) (s_j - m) for the entropy, the column of m, masses of any number of further channels.
They are those of the unedited row; where the edit changes scores, a second online softmax runs beside the
first.

    range_kernel          (key_ranges.py) once per mask: which keys a row sees; splits cut this range
    split_kernel          reads K and V: B Hkv Lk (D + Dv) elements, writes B Hq Lq S (K Dv + ...) floats
    decode_merge_kernel   (merge.py) merges the splits in a fixed order, runs the policy, writes the results

Determinism: what a row sees and the tiling decide every sum and its order. Other samples, the padding before
a sample's first visible key, and the cache after its last one change no bit.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.triton.arguments import (
    channel_arg,
    column_arg,
    matrix_arg,
    num_channels,
)
from regaze.kernels.triton.common import (
    channel_tile,
    column_tile,
    dot,
    edit_scores,
    softmax_step,
    tile_scores,
    unmask_row_bits,
    visible_tile,
    weighted_values,
    window_tile,
)
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.key_ranges import visible_range, window_range
from regaze.kernels.triton.row_list import RowList
from regaze.kernels.triton.splits import STATS_HEADER, SUMS_HEADER
from regaze.kernels.triton.tiling import (
    DecodeTiling,
    decode_tiling,
    length_bucket,
    padded,
    power_of_two,
    processors,
)


@triton.jit
def select_rows(selected, row_exists, batch, rows):
    """Which rows [M, 1] the edit changes: those that exist, and that `selected` [B or 1, 1, Lq] selects."""
    if selected.ptr is not None:
        ptrs = selected.ptr + rows
        if selected.stride_b is not None:
            ptrs += batch * selected.stride_b
        row_exists = row_exists & (tl.load(ptrs) != 0)
    return row_exists


@triton.jit
def load_cache(cache, batch, head, start, key_exists, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Keys or values start, start + 1, .. of a cache [B, H, Lk, D], [N, BLOCK_D]; 0 beyond HEAD_DIM and
    where not `key_exists` [N].
    """
    n, d = tl.arange(0, key_exists.shape[0])[:, None], tl.arange(0, BLOCK_D)[None, :]
    ptrs = cache.ptr + batch * cache.stride_b + head.to(tl.int64) * cache.stride_h
    # Only the start of the block needs 64 bits.
    ptrs += start.to(tl.int64) * cache.stride_l
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
    sums_ptr, outputs_ptr, first_record, records, row_exists, running_max, running_sum, masses, output,
    VALUE_DIM: tl.constexpr, NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Store a split's sums as records first_record + records [M]; `output` is [WIDTH * M, BLOCK_DV]."""
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


@triton.jit
def block_scores(
    query_tile, key, start, key_exists, columns, row_exists, batch, kv_head, heads, rows, row_bits, own_key,
    last_key, is_selected, mask, unmask, windows, edit, scaling, softcap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Unedited scores [M, N], which keys the rows see, and edited scores with -inf where they do not."""
    key_tile = tl.trans(load_cache(key, batch, kv_head, start, key_exists, HEAD_DIM, BLOCK_D))
    inside = row_exists[:, None] & key_exists[None, :]
    visible, added = visible_tile(inside, batch, heads, rows, columns, mask, unmask, row_bits, last_key)
    if windows.span_ptr is not None:
        visible = visible & window_tile(windows, batch, heads, own_key, columns)
    plain = tile_scores(query_tile, key_tile, scaling, softcap, INPUT_PRECISION) + added
    edited = edit_scores(plain, edit, is_selected, batch, heads, columns)
    return plain, visible, tl.where(visible, edited, float("-inf"))


@triton.jit(do_not_specialize=["num_keys"])
def split_kernel(
    sums_ptr, outputs_ptr, stats_ptr, query, key, value, mask, unmask, windows, ranges, selected, edit,
    channels, stats_channels, scaling, softcap, num_kv_heads, num_queries, num_keys,
    GQA_RATIO: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    STATS_GROUPS: tl.constexpr, STATS_CHANNELS: tl.constexpr, STATS_WIDTH: tl.constexpr,
    IS_CAUSAL: tl.constexpr, UNEDITED_STATS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, MASS_PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of one split of the keys for BLOCK_M packed rows of one key head.

    `value` is None where no output is computed, `stats_ptr` where there are no statistics. NUM_GROUPS,
    NUM_CHANNELS, WIDTH: groups, channels and padded channels of the policy; STATS_*: of the statistics.
    """
    split, num_splits = tl.program_id(1), tl.num_programs(1)
    pair, batch, kv_head, packed, row_exists, heads, rows = pack_rows(
        num_kv_heads, num_queries, GQA_RATIO, BLOCK_M
    )
    exists = row_exists[:, None]
    is_selected = select_rows(selected, exists, batch, rows)
    row_bits = unmask_row_bits(unmask, batch, tl.reshape(rows, [BLOCK_M]))
    last_key = rows + (num_keys - num_queries) if IS_CAUSAL else None  # the last row sits at the last key
    query_tile = load_queries(query, batch, heads, rows, row_exists, HEAD_DIM, BLOCK_D)

    # The key blocks that any of the rows sees, divided among the splits.
    first, end, own_key = visible_range(ranges, exists, batch, heads, rows, num_queries, num_keys)
    sink_blocks, window_start, num_blocks = window_range(
        windows, exists, batch, heads, own_key, first, end, BLOCK_N
    )
    share = tl.cdiv(num_blocks, num_splits)

    zeros = tl.zeros([BLOCK_M], tl.float32)
    running_max, running_sum, masses = zeros - float("inf"), zeros, tl.zeros([WIDTH, BLOCK_M], tl.float32)
    output = tl.zeros([WIDTH * BLOCK_M, BLOCK_DV], tl.float32)
    stats_masses = tl.zeros([BLOCK_N // 16, BLOCK_M, STATS_WIDTH], tl.float32)
    stats = (running_max, running_sum, zeros, tl.zeros([BLOCK_M], tl.int32), stats_masses)

    for i in range(split * share, tl.minimum((split + 1) * share, num_blocks)):
        start = tl.where(i < sink_blocks, first + i * BLOCK_N, window_start + (i - sink_blocks) * BLOCK_N)
        columns = start + tl.arange(0, BLOCK_N)
        key_exists = columns < end
        plain, visible, scores = block_scores(
            query_tile, key, start, key_exists, columns, row_exists, batch, kv_head, heads, rows, row_bits,
            own_key, last_key, is_selected, mask, unmask, windows, edit, scaling, softcap,
            HEAD_DIM, BLOCK_D, INPUT_PRECISION,
        )  # fmt: skip
        weights, rescale, running_max, running_sum = softmax_step(scores, running_max, running_sum)
        if stats_ptr is not None:
            softmax = (scores, weights, rescale, running_max, running_sum)
            stats = stats_step(
                plain, visible, softmax, stats_channels, batch, columns, stats,
                STATS_GROUPS, STATS_CHANNELS, STATS_WIDTH, UNEDITED_STATS, MASS_PRECISION,
            )  # fmt: skip
        if value is not None:
            value_tile = load_cache(value, batch, kv_head, start, key_exists, VALUE_DIM, BLOCK_DV)
            masses, output = output_step(
                weights, rescale, value_tile, masses, output, is_selected, channels, edit.value_gain, batch,
                heads, columns, WIDTH, NUM_GROUPS, NUM_CHANNELS, INPUT_PRECISION,
            )  # fmt: skip

    first_record = pair.to(tl.int64) * GQA_RATIO * num_queries * num_splits
    records = packed * num_splits + split
    if value is not None:
        store_sums(
            sums_ptr, outputs_ptr, first_record, records, row_exists, running_max, running_sum, masses,
            output, VALUE_DIM, NUM_CHANNELS, WIDTH, BLOCK_DV,
        )  # fmt: skip
    if stats_ptr is not None:
        store_stats(stats_ptr, first_record, records, row_exists, stats, STATS_CHANNELS, STATS_WIDTH)


# --- the host's side


@operator("decode_split")
def decode_split(
    tensors: list[Tensor | None],
    ranges: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    stats_groups: Tensor | None,
    stats_weights: Tensor | None,
    stats_num_groups: int,
    has_stats: bool,
    unedited_stats: bool,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> list[Tensor]:
    """The partial sums of every split, for `decode_merge`; `tensors` is a `RowList` of all rows.

    With a value in it: partial sums [B Hq Lq, S, 2 + K] and outputs [B Hq Lq, S, K or 1, Dv] of the K
    channels in `groups` and `weights`. If `has_stats`: partial statistics [B Hq Lq, S, 4 + K'] of K' further
    channels.
    """
    rows = RowList(*tensors)  # type: ignore[arg-type]
    channels = num_channels(groups, weights, num_groups)
    stats_channels = num_channels(stats_groups, stats_weights, stats_num_groups)
    tiling = tiling_of(rows, channels, has_stats)
    partials = _partials(rows, tiling, channels, stats_channels, has_stats)
    query, key, value = rows.query, rows.key, rows.value
    score = rows.score_arg(scaling, softcap)
    split_kernel[(key.shape[0] * key.shape[1] * tiling.row_tiles, tiling.num_splits)](
        *(partials[:2] if value is not None else (None, None)),
        partials[-1] if has_stats else None,
        matrix_arg(query),
        matrix_arg(key),
        None if value is None else matrix_arg(value),
        score.mask,
        score.unmask,
        score.windows,
        column_arg(None if ranges is None else ranges.flatten(2)),
        column_arg(None if rows.selected is None else rows.selected[:, None]),
        score.edit,
        channel_arg(groups, weights),
        channel_arg(stats_groups, stats_weights),
        scaling,
        softcap,
        key.shape[1],
        query.shape[2],
        key.shape[2],
        GQA_RATIO=rows.gqa_ratio,
        IS_CAUSAL=causal,
        UNEDITED_STATS=unedited_stats,
        **_constants(rows, tiling),
        NUM_GROUPS=num_groups,
        NUM_CHANNELS=channels,
        WIDTH=power_of_two(max(1, channels)),
        STATS_GROUPS=stats_num_groups,
        STATS_CHANNELS=stats_channels,
        STATS_WIDTH=max(16, power_of_two(max(1, stats_channels))),
    )
    return partials


def _constants(rows: RowList, tiling: DecodeTiling) -> dict[str, Any]:
    """Compile-time constants that follow from shapes and tiling."""
    head_dim, value_dim = rows.query.shape[3], 1 if rows.value is None else rows.value.shape[3]
    return {
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
        "BLOCK_M": tiling.block_m,
        "BLOCK_N": tiling.block_n,
        "BLOCK_D": padded(head_dim),
        "BLOCK_DV": padded(value_dim),
        "INPUT_PRECISION": "ieee",
        "MASS_PRECISION": "tf32x3" if torch.version.hip is None else "ieee",
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
        **FUSED,
    }


@decode_split.register_fake
def _(
    tensors: list[Tensor | None],
    ranges: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    stats_groups: Tensor | None,
    stats_weights: Tensor | None,
    stats_num_groups: int,
    has_stats: bool,
    unedited_stats: bool,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> list[Tensor]:
    rows = RowList(*tensors)  # type: ignore[arg-type]
    channels = num_channels(groups, weights, num_groups)
    stats_channels = num_channels(stats_groups, stats_weights, stats_num_groups)
    return _partials(rows, tiling_of(rows, channels, has_stats), channels, stats_channels, has_stats)


def _partials(
    rows: RowList, tiling: DecodeTiling, channels: int, stats_channels: int, has_stats: bool
) -> list[Tensor]:
    """Room for the results of `decode_split`."""
    batch, heads, queries, _ = rows.query.shape
    shapes: list[tuple[int, ...]] = []
    if rows.value is not None:
        shapes += [(SUMS_HEADER.value + channels,), (max(1, channels), rows.value.shape[3])]
    if has_stats:
        shapes += [(STATS_HEADER.value + stats_channels,)]
    records = batch * heads * queries, tiling.num_splits
    return [rows.query.new_empty((*records, *shape), dtype=torch.float32) for shape in shapes]


def tiling_of(rows: RowList, channels: int, has_stats: bool) -> DecodeTiling:
    """The tiling of a call; shapes (those a graph was traced for) and the kind of edit decide it."""
    query, key, value = rows.query, rows.key, rows.value
    return decode_tiling(
        batch=int(key.shape[0]),
        kv_heads=int(key.shape[1]),
        rows=int(rows.gqa_ratio * query.shape[2]),
        keys=length_bucket(int(key.shape[2])),
        width=padded(max(int(query.shape[3]), 0 if value is None else int(value.shape[3]))),
        channels=power_of_two(max(1, int(channels))),
        edited=rows.edits_columns,
        recorded=has_stats,
        element_size=key.element_size(),
        processors=processors(key.device),
    )
