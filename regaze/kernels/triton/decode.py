"""Split-KV decoding: edited attention of a few query rows over a long cache, and its statistics, in one pass.

At decode a layer is bound by reading K and V once. So the Hq / Hkv query heads that share a key head, times
the Lq rows, are packed into the M rows of one tile (padded to 16), whatever the ratio, and the keys are cut
into S splits so that all multiprocessors read. A program (split, key head, sample) steps over its keys, N at
a time, and keeps for each row, as flash attention does, the running maximum m of the scores and sums relative
to it:

    total   L   = sum_j e^(s_j - m) masses  L_k = sum_j e^(s_j - m) u_k[j]           for up to 4 channels u_k
    of a policy outputs O_k = sum_j e^(s_j - m) u_k[j] g_j v_j   channels are packed into M too: one product
    with V for all

The masses of all splits together give the policy its masses, and it gives coefficients c_k. The output of the
row is then sum_k c_k O_k / L, exactly what re-weighing the materialised row would give. Statistics ride
along: sum_j e^(s_j - m) (s_j - m) for the entropy, the column of m, masses of any number of further channels.
They are those of the unedited row; where the edit changes scores, a second online softmax is kept beside the
first.

    range_kernel   once per mask: which keys a row sees at all; splits cut this range, not the cache
    split_kernel   reads K and V: B Hkv Lk (D + Dv) elements, and writes B Hq Lq S (K Dv + ...) floats
    merge_kernel   (merge.py) joins the splits in a fixed order, runs the policy, writes output and statistics

Determinism: what a row sees and the plan decide every sum and its order. Other samples, the padding before a
sample's first visible key, and the cache behind its last one change no bit.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.triton.common import (
    channel_tile,
    column_tile,
    dot,
    edit_scores,
    in_window,
    look,
    narrow,
    opened_rows,
    shown,
    softmax_step,
    tile_scores,
)
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.operands import Scoring, matrix_arg, padded
from regaze.kernels.triton.plan import (
    DecodePlan,
    channel_arg,
    column_arg,
    decode_plan,
    length_bucket,
    mask_arg,
    opening_arg,
    power_of_two,
    processors,
)
from regaze.kernels.triton.splits import MEASURED, SUMS


@triton.jit(do_not_specialize=["keys"])
def range_kernel(ranges, mask, unmask, keys, BLOCK: tl.constexpr):
    """What `visible_ranges` gives, one row of the mask in a program."""
    row, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = row + tl.arange(0, 1)
    bits = opened_rows(unmask, batch, rows)
    first, end, own = keys, 0, -1
    for start in range(0, keys, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = (columns < keys)[None, :]
        own_keys, _ = shown(inside, batch, head, rows[:, None], columns, mask, None)
        seen, _ = look(inside, batch, head, rows[:, None], columns, mask, unmask, bits, None)
        first = tl.minimum(first, tl.min(tl.where(seen, columns[None, :], keys)))
        end = tl.maximum(end, tl.max(tl.where(seen, columns[None, :] + 1, 0)))
        own = tl.maximum(own, tl.max(tl.where(own_keys, columns[None, :], -1)))
    at = ranges + ((batch * tl.num_programs(1) + head) * tl.num_programs(0) + row) * 3
    tl.store(at, first)
    tl.store(at + 1, end)
    tl.store(at + 2, own)


@triton.jit
def visible_range(ranges, exists, batch, heads, rows, queries, keys):
    """First and end of the keys that any of the rows [M, 1] sees, and the key of each row itself [M, 1]."""
    if ranges.tensor is not None:
        at = ranges.tensor + rows * 3
        if ranges.batch is not None:
            at += batch * ranges.batch
        if ranges.head is not None:
            at += heads * ranges.head
        first = tl.min(tl.min(tl.where(exists, tl.load(at), keys), 1), 0)
        end = tl.max(tl.max(tl.where(exists, tl.load(at + 1), 0), 1), 0)
        return first, end, tl.load(at + 2)
    else:
        return 0, keys, rows + (keys - queries)


@triton.jit
def window_range(windows, exists, batch, heads, own, first, end, N: tl.constexpr):
    """How many blocks of N keys from `first` on hold those that windows always show; where windows start."""
    if windows.span is not None:
        at = windows.span + heads
        if windows.batch is not None:
            at += batch * windows.batch
        starts = tl.where(exists, own - tl.load(at) + 1, end)
        start = tl.min(tl.min(starts, 1), 0).to(tl.int32)
        early = tl.load(windows.early + batch).to(tl.int32)
        blocks = tl.cdiv(tl.maximum(tl.minimum(early, end) - first, 0), N)
        return blocks, tl.maximum(start, first + blocks * N)
    else:
        return 0, first


@triton.jit
def selected_rows(selected, exists, batch, rows):
    """Which rows [M, 1] the edit changes: those that exist, and that `selected` [B or 1, 1, Lq] selects."""
    if selected.tensor is not None:
        at = selected.tensor + rows
        if selected.batch is not None:
            at += batch * selected.batch
        exists = exists & (tl.load(at) != 0)
    return exists


@triton.jit
def load_keys(x, batch, head, start, held, D: tl.constexpr, BLOCK: tl.constexpr):
    """Rows start, start + 1, .. of a cache [B, H, Lk, D], [N, BLOCK]; 0 beyond D and where not `held` [N]."""
    d = tl.arange(0, BLOCK)[None, :]
    at = x.tensor + batch * x.batch + head.to(tl.int64) * x.head + start.to(tl.int64) * x.row
    at += tl.arange(0, held.shape[0])[:, None] * x.row + d
    return tl.load(at, mask=held[:, None] & (d < D), other=0.0)


@triton.jit
def record_step(
    scores, p, rescale, top, before, record, batch, columns, state,
    G: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry the statistics of a softmax over one more tile.

    `p`, `rescale` and `top` come from its `softmax_step`, `before` is (top, total) before that, `state` is
    (entropy sum, top column, masses). Every 16 keys of a tile have masses of their own, [N / 16, M, WIDTH],
    so that each warp multiplies its own keys.
    """
    entropy, column, masses = state
    old, total = before
    here = tl.min(tl.where(scores == top[:, None], columns[None, :], 0x7FFFFFFF), 1)
    column = tl.where(top > old, here, column)
    moved = tl.where(total > 0, (old - top) * total, 0.0)
    below = tl.where(p > 0, scores - top[:, None], 0.0)
    entropy = rescale * (entropy + moved) + tl.sum(p * below, 1)
    if K > 0:
        parts: tl.constexpr = p.shape[1] // 16
        u = channel_tile(record, batch, columns, WIDTH, G, K)
        u = tl.permute(tl.reshape(u, [WIDTH, parts, 16]), [1, 2, 0])
        p = tl.permute(tl.reshape(p, [p.shape[0], parts, 16]), [1, 0, 2])
        masses = masses * rescale[None, :, None] + dot(p, u, PRECISION)
    return entropy, column, masses


@triton.jit
def split_channels(
    weights, chosen, channels, batch, columns, WIDTH: tl.constexpr, G: tl.constexpr, K: tl.constexpr
):
    """Weights [M, N] by channel, [WIDTH, M, N]; rows that are not `chosen` [M, 1] have all in channel 0."""
    if K > 0:
        u = channel_tile(channels, batch, columns, WIDTH, G, K)[:, None, :]
        left_alone = (tl.arange(0, WIDTH) == 0).to(tl.float32)[:, None, None]
        return weights[None, :, :] * tl.where(chosen[None, :, :], u, left_alone)
    else:
        return weights[None, :, :]


@triton.jit
def output_step(
    weights, rescale, value, masses, output, chosen, channels, gains, batch, heads, columns,
    WIDTH: tl.constexpr, G: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry channel masses [WIDTH, M] and outputs [WIDTH * M, BLOCK_V] over one more tile of values."""
    parts = split_channels(weights, chosen, channels, batch, columns, WIDTH, G, K)
    if K > 0:
        masses = masses * rescale[None, :] + tl.sum(parts, 2)
    if gains.tensor is not None:
        gain = column_tile(gains, batch, heads, columns, 1.0)
        parts *= tl.where(chosen, gain, 1.0)[None, :, :]
    rows: tl.constexpr = WIDTH * weights.shape[0]
    parts = narrow(tl.reshape(parts, [rows, weights.shape[1]]), value.dtype)
    factor = tl.reshape(tl.broadcast_to(rescale[None, :], [WIDTH, weights.shape[0]]), [rows])
    return masses, output * factor[:, None] + dot(parts, value, PRECISION)


@triton.jit
def store_sums(
    sums, outputs, first, place, exists, top, total, masses, output, DV: tl.constexpr, K: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Store a split's sums as record first + place [M]; `output` is [WIDTH * M, BLOCK_V]."""
    channels: tl.constexpr = K if K > 0 else 1
    at = sums + first * (SUMS + K) + place * (SUMS + K)
    tl.store(at, top, mask=exists)
    tl.store(at + 1, total, mask=exists)
    k = tl.arange(0, WIDTH)[:, None]
    if K > 0:
        tl.store(at[None, :] + SUMS + k, masses, mask=exists[None, :] & (k < K))
    dv = tl.arange(0, BLOCK_V)[None, :]
    row = tl.reshape((place[None, :] * channels + k) * DV, [output.shape[0]])[:, None]
    wanted = tl.reshape(exists[None, :] & (k < channels), [output.shape[0]])[:, None] & (dv < DV)
    tl.store(outputs + first * channels * DV + row + dv, output, mask=wanted)


@triton.jit
def store_record(measured, first, place, exists, top, total, state, K: tl.constexpr, WIDTH: tl.constexpr):
    """Store the statistics of a split as record first + place [M]."""
    entropy, column, masses = state
    at = measured + first * (MEASURED + K) + place * (MEASURED + K)
    tl.store(at, top, mask=exists)
    tl.store(at + 1, total, mask=exists)
    tl.store(at + 2, entropy, mask=exists)
    tl.store(at + 3, column.to(tl.float32), mask=exists)
    if K > 0:
        k = tl.arange(0, WIDTH)[None, :]
        tl.store(at[:, None] + MEASURED + k, tl.sum(masses, 0), mask=exists[:, None] & (k < K))


@triton.jit(do_not_specialize=["keys"])
def split_kernel(
    sums, outputs, measured, q, k, v, mask, unmask, windows, ranges, selected, edit, channels, record,
    scaling, softcap, kv_heads, queries, keys,
    GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, CAUSAL: tl.constexpr, BESIDE: tl.constexpr,
    G: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    RG: tl.constexpr, RK: tl.constexpr, RWIDTH: tl.constexpr,
    PRECISION: tl.constexpr, MASS_PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of one split of the keys for M packed rows of one key head; `v` or `measured` may be None.

    BESIDE: statistics are of the unedited scores, while the edit changes scores. G, K, WIDTH: groups,
    channels and padded channels of the policy; RG, RK, RWIDTH: those on record.
    """
    split, splits = tl.program_id(1), tl.num_programs(1)
    tiles = tl.cdiv(GROUP * queries, M)
    pair, packed = tl.program_id(0) // tiles, tl.program_id(0) % tiles * M + tl.arange(0, M)
    batch, kv_head = (pair // kv_heads).to(tl.int64), pair % kv_heads
    exists = packed < GROUP * queries
    row = tl.where(exists, packed, 0) % queries
    heads, rows = (kv_head * GROUP + tl.where(exists, packed, 0) // queries)[:, None], row[:, None]
    chosen, bits = (
        selected_rows(selected, exists[:, None], batch, rows),
        opened_rows(unmask, batch, row),
    )
    last = None
    if CAUSAL:
        last = rows + (keys - queries)
    d = tl.arange(0, BLOCK_D)[None, :]
    q_at = q.tensor + batch * q.batch + heads.to(tl.int64) * q.head + rows * q.row + d
    query = tl.load(q_at, mask=exists[:, None] & (d < D), other=0.0)

    first, end, own = visible_range(ranges, exists[:, None], batch, heads, rows, queries, keys)
    early, late = window_range(windows, exists[:, None], batch, heads, own, first, end, N)
    blocks = early + tl.cdiv(tl.maximum(end - late, 0), N)
    share = tl.cdiv(blocks, splits)

    top, total = tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    plain_top, plain_total = top, total
    masses, output = tl.zeros([WIDTH, M], tl.float32), tl.zeros([WIDTH * M, BLOCK_V], tl.float32)
    state = (tl.zeros([M], tl.float32), tl.zeros([M], tl.int32), tl.zeros([N // 16, M, RWIDTH], tl.float32))

    for i in range(split * share, tl.minimum((split + 1) * share, blocks)):
        start = tl.where(i < early, first + i * N, late + (i - early) * N)
        columns = start + tl.arange(0, N)
        held = columns < end
        key = tl.trans(load_keys(k, batch, kv_head, start, held, D, BLOCK_D))
        inside = exists[:, None] & held[None, :]
        visible, added = look(inside, batch, heads, rows, columns, mask, unmask, bits, last)
        if windows.span is not None:
            visible = visible & in_window(windows, batch, heads, own, columns)
        plain = tile_scores(query, key, scaling, softcap, PRECISION) + added
        scores = edit_scores(plain, edit, chosen, batch, heads, columns)
        scores = tl.where(visible, scores, float("-inf"))
        before = (top, total)
        weights, rescale, top, total = softmax_step(scores, top, total)

        if measured is not None:
            noted, p, r, peak = scores, weights, rescale, top
            if BESIDE:
                noted, before = tl.where(visible, plain, float("-inf")), (plain_top, plain_total)
                p, r, plain_top, plain_total = softmax_step(noted, plain_top, plain_total)
                peak = plain_top
            state = record_step(
                noted, p, r, peak, before, record, batch, columns, state, RG, RK, RWIDTH, MASS_PRECISION
            )

        if v is not None:
            value = load_keys(v, batch, kv_head, start, held, DV, BLOCK_V)
            masses, output = output_step(
                weights, rescale, value, masses, output, chosen, channels, edit.value_gain, batch, heads,
                columns, WIDTH, G, K, PRECISION,
            )  # fmt: skip

    record_first, place = pair.to(tl.int64) * GROUP * queries * splits, packed * splits + split
    if v is not None:
        store_sums(
            sums, outputs, record_first, place, exists, top, total, masses, output, DV, K, WIDTH, BLOCK_V
        )
    if measured is not None:
        if BESIDE:
            top, total = plain_top, plain_total
        store_record(measured, record_first, place, exists, top, total, state, RK, RWIDTH)


# --- the host's side


@operator("visible_ranges")
def visible_ranges(mask: Tensor, row_bits: Tensor | None, column_bits: Tensor | None) -> Tensor:
    """[B', H', Lq, 3] int32: first key and end of the keys that a row sees, last key that the mask shows it.

    B' and H' are 1 where neither mask nor unmask differ by sample or by head.
    """
    ranges = _ranges_like(mask, row_bits, column_bits)
    batch, heads, queries, _ = ranges.shape
    unmask = opening_arg(row_bits, column_bits)
    range_kernel[(queries, heads, batch)](
        ranges, mask_arg(mask), unmask, mask.shape[3], BLOCK=1024, num_warps=4, **FUSED
    )
    return ranges


@visible_ranges.register_fake
def _ranges_like(mask: Tensor, row_bits: Tensor | None, column_bits: Tensor | None) -> Tensor:
    batch = max(t.shape[0] for t in (mask, row_bits, column_bits) if t is not None)
    return mask.new_empty(batch, mask.shape[1], mask.shape[2], 3, dtype=torch.int32)


@operator("decode_split")
def decode_split(
    tensors: list[Tensor | None],
    ranges: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    record_groups: Tensor | None,
    record_weights: Tensor | None,
    record_num_groups: int,
    recorded: bool,
    beside: bool,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> list[Tensor]:
    """What every split sums up, for `decode_merge`; `tensors` is a `Scoring` of all rows.

    With a v in it [B Hq Lq, S, 2 + K] sums and [B Hq Lq, S, K or 1, Dv] outputs, of the K channels in
    `groups` and `weights`; if `recorded` the [B Hq Lq, S, 4 + K'] measured of K' further channels.
    """
    scoring = Scoring(*tensors)  # type: ignore[arg-type]
    channels = count(groups, weights, num_groups)
    on_record = count(record_groups, record_weights, record_num_groups)
    plan = plan_of(scoring, channels, recorded)
    partials = _partials(scoring, plan, channels, on_record, recorded)
    q, k, v = scoring.q, scoring.k, scoring.v
    value_dim = 1 if v is None else v.shape[3]
    call = scoring.call_arg(scaling, softcap)
    split_kernel[(k.shape[0] * k.shape[1] * plan.tiles, plan.splits)](
        *(partials[:2] if v is not None else (None, None)),
        partials[-1] if recorded else None,
        matrix_arg(q),
        matrix_arg(k),
        None if v is None else matrix_arg(v),
        call.mask,
        call.unmask,
        call.windows,
        column_arg(None if ranges is None else ranges.flatten(2)),
        column_arg(None if scoring.chosen is None else scoring.chosen[:, None]),
        call.edit,
        channel_arg(groups, weights),
        channel_arg(record_groups, record_weights),
        scaling,
        softcap,
        k.shape[1],
        q.shape[2],
        k.shape[2],
        GROUP=scoring.group,
        D=q.shape[3],
        DV=value_dim,
        M=plan.rows,
        N=plan.keys,
        BLOCK_D=padded(q.shape[3]),
        BLOCK_V=padded(value_dim),
        CAUSAL=causal,
        BESIDE=beside,
        G=num_groups,
        K=channels,
        WIDTH=power_of_two(max(1, channels)),
        RG=record_num_groups,
        RK=on_record,
        RWIDTH=max(16, power_of_two(max(1, on_record))),
        PRECISION="ieee",
        MASS_PRECISION="tf32x3" if torch.version.hip is None else "ieee",
        num_warps=plan.warps,
        num_stages=plan.stages,
        **FUSED,
    )
    return partials


@decode_split.register_fake
def _(
    tensors: list[Tensor | None],
    ranges: Tensor | None,
    groups: Tensor | None,
    weights: Tensor | None,
    num_groups: int,
    record_groups: Tensor | None,
    record_weights: Tensor | None,
    record_num_groups: int,
    recorded: bool,
    beside: bool,
    scaling: float,
    softcap: float | None,
    causal: bool,
) -> list[Tensor]:
    scoring = Scoring(*tensors)  # type: ignore[arg-type]
    channels = count(groups, weights, num_groups)
    on_record = count(record_groups, record_weights, record_num_groups)
    return _partials(scoring, plan_of(scoring, channels, recorded), channels, on_record, recorded)


def _partials(
    scoring: Scoring, plan: DecodePlan, channels: int, on_record: int, recorded: bool
) -> list[Tensor]:
    """Room for what `decode_split` returns."""
    batch, heads, queries, _ = scoring.q.shape
    shapes: list[tuple[int, ...]] = []
    if scoring.v is not None:
        shapes += [(SUMS.value + channels,), (max(1, channels), scoring.v.shape[3])]
    if recorded:
        shapes += [(MEASURED.value + on_record,)]
    rows = batch * heads * queries
    return [scoring.q.new_empty((rows, plan.splits, *shape), dtype=torch.float32) for shape in shapes]


def plan_of(scoring: Scoring, channels: int, recorded: bool) -> DecodePlan:
    """The plan of a call; shapes (those a graph was traced for) and the kind of edit decide it."""
    q, k, v = scoring.q, scoring.k, scoring.v
    edits = (scoring.slope, scoring.gain, scoring.head_gain, scoring.bias, scoring.value_gain)
    return decode_plan(
        batch=int(k.shape[0]),
        kv_heads=int(k.shape[1]),
        rows=int(scoring.group * q.shape[2]),
        keys=length_bucket(int(k.shape[2])),
        width=padded(max(int(q.shape[3]), 0 if v is None else int(v.shape[3]))),
        channels=power_of_two(max(1, int(channels))),
        edited=any(part is not None for part in edits),
        recorded=recorded,
        size=k.element_size(),
        processors=processors(k.device),
    )


def count(groups: Tensor | None, weights: Tensor | None, num_groups: int) -> int:
    """Number of channels: groups, then free weights."""
    return (0 if groups is None else num_groups) + (0 if weights is None else weights.shape[0])
