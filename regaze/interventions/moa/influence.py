"""What a MoA plan is chosen by: the influence of each key, and how much of it a rule drops."""

from __future__ import annotations

import torch
from torch import Tensor

from regaze.errors import ShapeError
from regaze.interventions.moa.method import spans


def key_influence(attention: Tensor, gradient: Tensor) -> Tensor:
    """First-order change of the loss when a key is removed from a row and the row renormalised.

    E_ij = -A_ij (g_ij - sum_k g_ik A_ik) / (1 - A_ij), and -A g in the first row, which has one key only.
    Source: MoA (arXiv:2406.14909), attention influence profiling.

    Args:
        attention: [..., L, L] causal attention weights A.
        gradient: [..., L, L] derivative g of the loss (of the dense model's own answers) by A.

    Returns:
        [..., L, L], 0 above the diagonal.
    """
    if attention.shape != gradient.shape or attention.dim() < 2 or attention.shape[-1] != attention.shape[-2]:
        raise ShapeError(
            f"attention and gradient must be [..., L, L], got {list(attention.shape)} and "
            f"{list(gradient.shape)}"
        )
    mean = (gradient * attention).sum(-1, keepdim=True)
    rest = 1 - attention + torch.finfo(torch.float32).eps  # not 0 for a key with all attention
    effect = -attention * (gradient - mean) / rest
    effect[..., 0, :] = -(attention * gradient)[..., 0, :]
    return effect.tril()


def block_influence(effect: Tensor, block: int = 64) -> Tensor:
    """|E| summed over blocks: [..., L, L] -> [..., L / block, L / block]."""
    if effect.shape[-1] % block:
        raise ShapeError(f"the length {effect.shape[-1]} is not a multiple of the block size {block}")
    count = effect.shape[-1] // block
    tiles = effect.abs().unflatten(-1, (count, block)).unflatten(-3, (count, block))
    return tiles.sum((-3, -1))


def block_layout(alpha: float, beta: float, length: int, block: int = 64) -> Tensor:
    """Blocks that the last row of each block sees, [L / block, L / block] bool."""
    count = length // block
    rule = torch.tensor([alpha, beta, length], dtype=torch.float64)
    band = spans(rule[0], rule[1], rule[2], block).clamp_max(length) // block
    row, key = torch.arange(count)[:, None], torch.arange(count)
    return (key <= row) & ((row - key < band) | (key == 0))


def dropped_influence(influence: Tensor, alpha: float, beta: float, length: int, block: int = 64) -> Tensor:
    """Influence [..., n, n] in the causal blocks that a rule drops, [...]."""
    kept = block_layout(alpha, beta, length, block)
    return influence.tril().masked_fill(kept, 0.0).sum((-2, -1))
