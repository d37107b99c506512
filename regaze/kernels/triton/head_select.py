"""The policy `FollowGaze`, which couples the heads of a row: one program sees all heads of a sample's row."""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from regaze.kernels.policies import FollowGaze
from regaze.kernels.triton.common import TINY
from regaze.kernels.triton.custom_op import FUSED, operator
from regaze.kernels.triton.decode import SUMS, merge_splits
from regaze.kernels.triton.plan import policy_numbers, power_of_two


@triton.jit
def in_top(x, number, N: tl.constexpr):
    """Which of x [N] are among the `number` largest; of equal ones the first."""
    i = tl.arange(0, N)
    ahead = (x[None, :] > x[:, None]) | ((x[None, :] == x[:, None]) & (i[None, :] < i[:, None]))
    return tl.sum(ahead.to(tl.int32), 1) < number


@triton.jit
def gaze_kernel(
    coefficients,
    masses,
    sums,
    sinks,
    splits,
    heads,
    rows,
    most,
    gain,
    K: tl.constexpr,
    IMAGE: tl.constexpr,
    QUERY: tl.constexpr,
    SALIENT: tl.constexpr,
    HEADS: tl.constexpr,
    S: tl.constexpr,
):
    """Coefficients [B, Hq, R, K] of `FollowGaze` from masses of that shape, or, if these are None, `sums`."""
    row, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head = tl.arange(0, HEADS)
    exists = head < heads
    head = tl.where(exists, head, 0)
    at = (batch * heads + head) * rows + row
    if masses is None:
        place, held, factors, _, _, _, _ = merge_splits(sums, at, exists, head, sinks, splits, SUMS + K, S)
    total = tl.zeros([HEADS], tl.float32)
    image, query, salient = total, total, total
    for k in tl.static_range(K):
        if masses is not None:
            mass = tl.load(masses + at * K + k, mask=exists, other=0.0)
        else:
            mass = tl.sum(factors * tl.load(sums + place + SUMS + k, mask=held, other=0.0), 1)
        if k == IMAGE:
            image = mass
        elif k == QUERY:
            query = mass
        elif k == SALIENT:
            salient = mass
        total += mass

    looks = exists & in_top(tl.where(exists, image, -1.0), most, HEADS)
    reads = exists & in_top(tl.where(exists, query, -1.0), most, HEADS)
    before, after = tl.sum(tl.where(looks, image, 0.0), 0), tl.sum(tl.where(looks, salient, 0.0), 0)
    realised = tl.where(before > 0, after / tl.maximum(before, TINY), 1.0)
    of_query = tl.where(reads, gain * realised, 1.0)
    seen = total - salient
    edited = seen - image - query + tl.where(looks, salient, image) + query * of_query
    scale = tl.where(edited > 0, seen / tl.maximum(edited, TINY), 1.0)
    for k in tl.static_range(K):
        coefficient = scale
        if k == IMAGE:
            coefficient = tl.where(looks, 0.0, scale)
        elif k == QUERY:
            coefficient = scale * of_query
        elif k == SALIENT:
            coefficient = tl.where(looks, scale, 0.0)
        tl.store(coefficients + at * K + k, coefficient, mask=exists)


def follow_gaze(policy: FollowGaze, masses: Tensor) -> Tensor:
    """Coefficients of `policy` from masses [B, Hq, R, K], in one kernel."""
    return _follow_gaze(masses.contiguous(), policy_numbers(policy, masses.shape[1])[1])


@operator("follow_gaze")
def _follow_gaze(masses: Tensor, numbers: Sequence[float]) -> Tensor:
    return gaze_coefficients(masses, None, None, masses.shape, numbers)


@_follow_gaze.register_fake
def _(masses: Tensor, numbers: Sequence[float]) -> Tensor:
    return torch.empty_like(masses)


def gaze_coefficients(
    masses: Tensor | None,
    sums: Tensor | None,
    sinks: Tensor | None,
    shape: Sequence[int],
    numbers: Sequence[float],
) -> Tensor:
    """Coefficients of `shape` [B, Hq, R, K] from masses, or from the `sums` of `decode_split` and `sinks`."""
    batch, heads, rows, channels = shape
    source = masses if masses is not None else sums
    assert source is not None
    coefficients = source.new_empty(shape, dtype=torch.float32)
    image, query, salient, most = (int(number) for number in numbers[:4])
    splits = 1 if sums is None else sums.shape[1]
    gaze_kernel[(rows, batch)](
        coefficients,
        masses,
        sums,
        sinks,
        splits,
        heads,
        rows,
        most,
        numbers[4],
        K=channels,
        IMAGE=image,
        QUERY=query,
        SALIENT=salient,
        HEADS=power_of_two(heads),
        S=power_of_two(splits),
        num_warps=8,
        **FUSED,
    )
    return coefficients
