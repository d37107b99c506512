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

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.channels import Channels
from regaze.kernels.policies import Policy
from regaze.kernels.spec import AttentionEdit, StatsRequest
from regaze.kernels.triton.arguments import (
    channel_arg,
    column_arg,
    mask_arg,
    matrix_arg,
    num_channels,
    pages_arg,
)
from regaze.kernels.triton.common import (
    edit_scores,
    softmax_step,
    tile_scores,
    unmask_row_bits,
    visible_tile,
    window_tile,
)
from regaze.kernels.triton.custom_op import ROOMY, operator
from regaze.kernels.triton.decode_steps import (
    key_places,
    keys_of,
    load_cache,
    load_queries,
    no_sums,
    output_step,
    pack_rows,
    select_rows,
    stats_step,
    store_split,
)
from regaze.kernels.triton.decode_whole import finish
from regaze.kernels.triton.key_ranges import keys_inside, tile_range, visible_range, window_range
from regaze.kernels.triton.policy import device_function
from regaze.kernels.triton.row_list import RowList
from regaze.kernels.triton.splits import STATS_HEADER, SUMS_HEADER
from regaze.kernels.triton.tiling import (
    DecodeTiling,
    architecture,
    decode_tiling,
    length_bucket,
    padded,
    power_of_two,
    processors,
)


@triton.jit
def block_scores(
    query_tile, key, places, key_exists, columns, inside, has_holes, batch, kv_head, heads, rows, row_bits,
    own_key, last_key, is_selected, mask, unmask, windows, edit, scaling, softcap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Unedited scores [M, N], which keys the rows see, and edited scores with -inf where they do not.

    `key_exists` [N] and `inside` [M, N] come from `keys_inside`, `places` from `key_places`.
    """
    key_tile = tl.trans(load_cache(key, places, kv_head, key_exists, HEAD_DIM, BLOCK_D))
    visible, added = visible_tile(
        inside, has_holes, batch, heads, rows, columns, mask, unmask, row_bits, last_key
    )
    if windows.span_ptr is not None:
        visible = visible & window_tile(windows, batch, heads, own_key, columns)
    plain = tile_scores(query_tile, key_tile, scaling, softcap, INPUT_PRECISION) + added
    edited = edit_scores(plain, edit, is_selected, batch, heads, columns)
    return plain, visible, tl.where(visible, edited, float("-inf"))


@triton.jit(do_not_specialize=["num_keys", "num_kv_heads", "num_queries"])
def split_kernel(
    sums_ptr, outputs_ptr, stats_ptr, whole, query, key, value, pages, mask, ranges, num_keys,
    unmask, windows, selected, edit, channels, stats_channels, scaling, softcap, num_kv_heads, num_queries,
    GQA_RATIO: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    NUM_GROUPS: tl.constexpr, NUM_CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    STATS_GROUPS: tl.constexpr, STATS_CHANNELS: tl.constexpr, STATS_WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr, IS_CAUSAL: tl.constexpr, HAS_STATS: tl.constexpr, UNEDITED_STATS: tl.constexpr,
    POLICY: tl.constexpr, INPUT_PRECISION: tl.constexpr, MASS_PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of one split of the keys for BLOCK_M packed rows of one key head.

    `value` is None where no output is computed. A `whole` split finishes its rows (decode_whole.py).
    NUM_GROUPS, NUM_CHANNELS, WIDTH: groups, channels, padded channels of the policy; STATS_*: of statistics.
    PAGE_SIZE: keys of a page, where `key` and `value` are in `pages`; 0 where they are not.
    """
    split, num_splits = tl.program_id(1), tl.num_programs(1)
    packing = pack_rows(num_kv_heads, num_queries, GQA_RATIO, BLOCK_M)
    pair, batch, kv_head, packed, row_exists, heads, rows = packing
    exists = row_exists[:, None]
    num_keys = keys_of(pages, batch, num_keys, PAGE_SIZE)
    is_selected = select_rows(selected, exists, batch, rows)
    row_bits = unmask_row_bits(unmask, batch, tl.reshape(rows, [BLOCK_M]))
    last_key = rows + (num_keys - num_queries) if IS_CAUSAL else None  # the last row sits at the last key
    query_tile = load_queries(query, batch, heads, rows, row_exists, HEAD_DIM, BLOCK_D)
    # The key blocks that any of the rows sees, divided among the splits.
    row_first, row_end, own_key, has_holes = visible_range(
        ranges, mask, unmask, exists, batch, heads, rows, num_queries, num_keys
    )
    first, end = tile_range(ranges, row_first, row_end)
    sink_blocks, window_start, num_blocks = window_range(
        windows, exists, batch, heads, own_key, first, end, BLOCK_N, PAGE_SIZE > 0
    )
    share = tl.cdiv(num_blocks, num_splits)

    running_max, running_sum, masses, output, stats = no_sums(BLOCK_M, BLOCK_N, BLOCK_DV, WIDTH, STATS_WIDTH)
    for i in range(split * share, tl.minimum((split + 1) * share, num_blocks)):
        start = tl.where(i < sink_blocks, first + i * BLOCK_N, window_start + (i - sink_blocks) * BLOCK_N)
        columns = start + tl.arange(0, BLOCK_N)
        key_exists, inside = keys_inside(ranges, columns, end, exists, row_first, row_end)
        places = key_places(pages, batch, start, key_exists, BLOCK_N, PAGE_SIZE)
        plain, visible, scores = block_scores(
            query_tile, key, places, key_exists, columns, inside, has_holes, batch, kv_head, heads, rows,
            row_bits, own_key, last_key, is_selected, mask, unmask, windows, edit, scaling, softcap,
            HEAD_DIM, BLOCK_D, INPUT_PRECISION,
        )  # fmt: skip
        weights, rescale, running_max, running_sum = softmax_step(scores, running_max, running_sum)
        if HAS_STATS:
            stats = stats_step(
                plain, visible, (scores, weights, rescale, running_max, running_sum), stats_channels, batch,
                columns, stats, STATS_GROUPS, STATS_CHANNELS, STATS_WIDTH, UNEDITED_STATS, MASS_PRECISION,
            )  # fmt: skip
        if value is not None:
            value_tile = load_cache(value, places, kv_head, key_exists, VALUE_DIM, BLOCK_DV)
            masses, output = output_step(
                weights, rescale, value_tile, masses, output, is_selected, channels, edit.value_gain, batch,
                heads, columns, WIDTH, NUM_GROUPS, NUM_CHANNELS, INPUT_PRECISION,
            )  # fmt: skip
    sums = (running_max, running_sum, masses, output)
    if whole is None:
        store_split(
            sums_ptr, outputs_ptr, stats_ptr, value, sums, stats, pair, packed, GQA_RATIO * num_queries,
            row_exists, VALUE_DIM, NUM_CHANNELS, WIDTH, BLOCK_DV, HAS_STATS, STATS_CHANNELS, STATS_WIDTH,
        )  # fmt: skip
    else:
        finish(
            whole, value, sums, stats, is_selected, batch, heads, rows, row_exists, num_kv_heads * GQA_RATIO,
            VALUE_DIM, NUM_CHANNELS, WIDTH, BLOCK_DV, HAS_STATS, STATS_CHANNELS, STATS_WIDTH, POLICY,
        )  # fmt: skip


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
    split = SplitChannels(
        groups, weights, num_groups, stats_groups, stats_weights, stats_num_groups, has_stats, unedited_stats
    )
    tiling = tiling_of(rows, split)
    partials = [
        rows.query.new_empty(shape, dtype=torch.float32) for shape in partial_shapes(rows, tiling, split)
    ]
    grid, constants = split_launch(rows, tiling, split, causal)
    fixed = split_arguments(rows, split, scaling, softcap)
    value = None if rows.value is None else matrix_arg(rows.value)
    split_kernel[grid](
        *(partials[:2] if value is not None else (None, None)),
        partials[-1] if has_stats else None,
        None,
        matrix_arg(rows.query),
        matrix_arg(rows.key),
        value,
        pages_arg(rows.block_table, rows.lengths),
        mask_arg(rows.mask),
        column_arg(None if ranges is None else ranges.flatten(2)),
        rows.num_keys,
        *fixed,
        **constants,
    )
    return partials


class SplitChannels(NamedTuple):
    """The channels of the policy and of the statistics of a call, as `decode_split` takes them."""

    groups: Tensor | None
    weights: Tensor | None
    num_groups: int
    stats_groups: Tensor | None
    stats_weights: Tensor | None
    stats_num_groups: int
    has_stats: bool
    unedited_stats: bool

    @classmethod
    def of(cls, edit: AttentionEdit, policy: Policy | None, request: StatsRequest | None) -> SplitChannels:
        """Those of an edit whose policy, if it acts at all, is `policy`, and of a request."""
        return cls(
            *parts_of(edit.channels if policy is not None else None),
            *parts_of(None if request is None else request.channels),
            has_stats=request is not None,
            unedited_stats=request is not None
            and not request.edited
            and edit.edits_scores
            and edit.selects_rows,
        )

    @property
    def num_channels(self) -> int:
        """Number of channels of the policy."""
        return num_channels(self.groups, self.weights, self.num_groups)

    @property
    def num_stats_channels(self) -> int:
        """Number of channels of the statistics."""
        return num_channels(self.stats_groups, self.stats_weights, self.stats_num_groups)


def parts_of(channels: Channels | None) -> tuple[Tensor | None, Tensor | None, int]:
    """Channels as operators take them."""
    return (None, None, 0) if channels is None else (channels.groups, channels.weights, channels.num_groups)


def split_arguments(
    rows: RowList, split: SplitChannels, scaling: float, softcap: float | None
) -> tuple[Any, ...]:
    """The arguments of `split_kernel` after `num_keys`: those that calls with the same edit share."""
    score = rows._replace(mask=None).score_arg(scaling, softcap)
    return (
        score.unmask,
        score.windows,
        column_arg(None if rows.selected is None else rows.selected[:, None]),
        score.edit,
        channel_arg(split.groups, split.weights),
        channel_arg(split.stats_groups, split.stats_weights),
        scaling,
        softcap,
        rows.key.shape[1],
        rows.query.shape[2],
    )


def split_launch(
    rows: RowList, tiling: DecodeTiling, split: SplitChannels, causal: bool, function: str = ""
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and compile-time constants of `split_kernel`; `function` is that of a policy which it runs."""
    channels, stats_channels = split.num_channels, split.num_stats_channels
    constants = {
        "GQA_RATIO": rows.gqa_ratio,
        "PAGE_SIZE": rows.page_size,
        "IS_CAUSAL": causal,
        "HAS_STATS": split.has_stats,
        "UNEDITED_STATS": split.unedited_stats,
        "POLICY": device_function(function) if function else None,
        "NUM_GROUPS": split.num_groups,
        "NUM_CHANNELS": channels,
        "WIDTH": power_of_two(max(1, channels)),
        "STATS_GROUPS": split.stats_num_groups,
        "STATS_CHANNELS": stats_channels,
        "STATS_WIDTH": max(16, power_of_two(max(1, stats_channels))),
    }
    grid = rows.query.shape[0] * rows.key.shape[1] * tiling.row_tiles, tiling.num_splits
    return grid, constants | _constants(rows, tiling)


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
        **ROOMY,
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
    split = SplitChannels(
        groups, weights, num_groups, stats_groups, stats_weights, stats_num_groups, has_stats, unedited_stats
    )
    shapes = partial_shapes(rows, tiling_of(rows, split), split)
    return [rows.query.new_empty(shape, dtype=torch.float32) for shape in shapes]


def partial_shapes(rows: RowList, tiling: DecodeTiling, split: SplitChannels) -> list[tuple[int, ...]]:
    """Shapes of the results of `decode_split`."""
    batch, heads, queries, _ = rows.query.shape
    records = batch * heads * queries, tiling.num_splits
    shapes: list[tuple[int, ...]] = []
    if rows.value is not None:
        shapes.append((*records, SUMS_HEADER.value + split.num_channels))
        shapes.append((*records, max(1, split.num_channels), rows.value.shape[3]))
    if split.has_stats:
        shapes.append((*records, STATS_HEADER.value + split.num_stats_channels))
    return shapes


def tiling_of(rows: RowList, split: SplitChannels) -> DecodeTiling:
    """The tiling of a call; shapes (those a graph was traced for) and the kind of edit decide it."""
    query, key, value = rows.query, rows.key, rows.value
    return decode_tiling(
        batch=int(query.shape[0]),
        kv_heads=int(key.shape[1]),
        rows=int(rows.gqa_ratio * query.shape[2]),
        keys=length_bucket(int(rows.num_keys)),
        width=padded(max(int(query.shape[3]), 0 if value is None else int(value.shape[3]))),
        channels=power_of_two(max(1, int(split.num_channels))),
        edited=rows.edits_columns,
        recorded=split.has_stats,
        element_size=key.element_size(),
        processors=processors(key.device),
        architecture=architecture(key.device),
        paged=rows.block_table is not None,
    )
