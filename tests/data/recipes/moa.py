"""MoA: what each key's loss would cost, and windows of blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recipes.base import Array, Golden, normal, softmax


def effect_of(attention: Array, gradient: Array) -> Array:
    """First-order change of the loss when a key is left out and its row renormalised."""
    pulled = gradient - (gradient * attention).sum(-1, keepdims=True)
    effect = -attention * pulled / (1 - attention + np.finfo(np.float32).eps)
    effect[..., 0, :] = -(attention * gradient)[..., 0, :]  # its one key cannot be left out
    return effect


def layout(alpha: float, beta: float, blocks: int, size: int) -> Array:
    """[blocks, blocks]: a band of blocks that ends on the diagonal, and the first column."""
    band = max(int(alpha // size + beta * blocks), 1)
    row, column = np.mgrid[:blocks, :blocks]
    return ((row - column < band) | (column == 0)) & (column <= row)


def goldens() -> Iterator[Golden]:
    """`span` and `influence`."""
    rng = np.random.default_rng(12)
    golden = Golden(
        "moa", "span", "band = max(int(alpha // size + beta blocks), 1); density of the fullest row"
    )
    for name, blocks, size, rules in (
        ("few", 6, 32, [[0, 0.5], [-32, 0.5], [64, 0.0]]),
        ("many", 10, 16, [[0, 0.25], [48, 0.3], [0, 1.0], [-64, 0.5]]),
    ):
        influence = np.abs(normal(rng, 2, blocks, blocks))
        kept = np.stack([layout(*rule, blocks, size) for rule in rules])
        seen = np.tril(np.ones((blocks, blocks), bool))
        cost = np.stack([(influence * (seen & ~each)).sum((1, 2)) for each in kept], 1)
        params = {"length": blocks * size, "block_size": size, "rules_alpha_beta": rules}
        density = kept.sum(-1).max(-1) / blocks
        outputs = {"layout": kept.astype(np.int64), "density": density, "cost": cost}
        golden.case(name, params, {"block_influence": influence}, outputs)
    yield golden
    golden = Golden("moa", "influence", "-A (g - sum g A) / (1 - A + eps); the first row -A g")
    for name, shape, block in (("single", (1, 2, 3, 11, 11), 1), ("blocks", (2, 1, 2, 12, 12), 3)):
        hidden = np.triu(np.full(shape[-2:], -np.inf), 1)
        attention = softmax(normal(rng, *shape) + hidden).astype(np.float32).astype(np.float64)
        gradient = normal(rng, *shape)
        effect = effect_of(attention, gradient)
        outputs = {"effect": effect}
        if block > 1:
            grid = effect.shape[-1] // block
            split = np.tril(effect).reshape(*shape[:3], grid, block, grid, block)
            outputs["block_abs_effect"] = np.abs(split).sum((-3, -1))
        golden.case(name, {"block": block}, {"attn": attention, "grad": gradient}, outputs)
    yield golden
