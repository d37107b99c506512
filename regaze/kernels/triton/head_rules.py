"""The Triton part of `ScaleHeads` (kernels/head_rules.py): the rows it gets are all heads of one query row.

Its numbers: how many steps there are, whether the row keeps its mass, which channels are groups; then of each
step seven rows of numbers per channel (statistic, its divisor, coefficients of chosen heads and of others,
the channel that rises with the gain before, the two that its own gain compares), whether it ranks, and the
count or the number of deviations.
"""
# Kernels are compiled from their source; their parameters are pointers and numbers that mypy cannot type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from regaze.kernels import policies
from regaze.kernels.triton.common import MAX_CHANNELS, TINY

_HEADER = tl.constexpr(2)
_STEP = tl.constexpr(7 * policies.MAX_CHANNELS + 2)


@triton.jit
def top_heads(statistic, exists, count):
    """Which of the heads [M] have the `count` largest, of equals the first; all if it is 0 in each."""
    statistic = tl.where(exists, statistic, -1.0)  # padding comes last: a statistic is not negative
    i = tl.arange(0, statistic.shape[0])
    ahead = (statistic[None, :] > statistic[:, None]) | (
        (statistic[None, :] == statistic[:, None]) & (i[None, :] < i[:, None])
    )
    count = tl.where(tl.max(statistic, 0) > 0, count, statistic.shape[0])
    return tl.sum(ahead.to(tl.int32), 1) < count


@triton.jit
def outstanding_heads(statistic, exists, deviations):
    """Which of the heads [M] lie so many standard deviations above their mean."""
    count = tl.sum(exists.to(tl.float32), 0)
    mean = tl.sum(tl.where(exists, statistic, 0.0), 0) / count
    below = tl.where(exists, statistic - mean, 0.0)
    return statistic > mean + deviations * tl.sqrt(tl.sum(below * below, 0) / count)


@triton.jit
def picked_heads(masses, exists, step_ptr, k):
    """The heads [M] that a step chooses by masses [M, WIDTH]."""
    over = tl.load(step_ptr + MAX_CHANNELS + k)
    statistic = tl.sum(masses * tl.load(step_ptr + k), 1)
    whole = tl.where(tl.sum(over, 1) > 0, tl.sum(masses * over, 1), 1.0)
    statistic = tl.where(whole > 0, statistic / tl.maximum(whole, TINY), 0.0)
    amount = tl.load(step_ptr + 7 * MAX_CHANNELS + 1)
    by_rank = top_heads(statistic, exists, amount.to(tl.int32))
    by_mean = outstanding_heads(statistic, exists, amount)
    ranks = tl.load(step_ptr + 7 * MAX_CHANNELS) > 0
    return exists & (tl.where(ranks, by_rank.to(tl.int32), by_mean.to(tl.int32)) > 0)


@triton.jit
def scale_heads(masses, heads, exists, numbers_ptr, WIDTH: tl.constexpr):
    """Coefficients [M, WIDTH] of `ScaleHeads`; see `TritonPart` for the arguments."""
    k = tl.arange(0, WIDTH)[None, :]
    head_exists = tl.sum(exists.to(tl.int32), 1) > 0
    coefficients, gain = masses * 0.0 + 1.0, tl.sum(tl.sum(masses * 0.0, 1), 0) + 1.0
    step_ptr = numbers_ptr + _HEADER + MAX_CHANNELS
    for _ in range(tl.load(numbers_ptr).to(tl.int32)):
        picked = picked_heads(masses, head_exists, step_ptr, k)
        rise = 1.0 + tl.load(step_ptr + 4 * MAX_CHANNELS + k) * (gain - 1.0)
        chosen = tl.load(step_ptr + 2 * MAX_CHANNELS + k) * rise
        others = tl.load(step_ptr + 3 * MAX_CHANNELS + k)
        coefficients *= tl.where(picked[:, None], chosen, others)
        after = tl.sum(masses * tl.load(step_ptr + 5 * MAX_CHANNELS + k), 1)
        before = tl.sum(masses * tl.load(step_ptr + 6 * MAX_CHANNELS + k), 1)
        held, had = tl.sum(tl.where(picked, after, 0.0), 0), tl.sum(tl.where(picked, before, 0.0), 0)
        gain = tl.where(had > 0, held / tl.maximum(had, TINY), 1.0)
        step_ptr += _STEP
    total = tl.sum(masses * tl.load(numbers_ptr + _HEADER + k), 1)
    edited = tl.sum(masses * coefficients, 1)
    scale = tl.where(edited > 0, total / tl.maximum(edited, TINY), 1.0)
    return coefficients * tl.where(tl.load(numbers_ptr + 1) > 0, scale, 1.0)[:, None]
