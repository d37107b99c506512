"""Two prompts about one image: where the first looks more, and how widely a prompt looks (CARVE)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from regaze.errors import ShapeError


def contrast(
    question: Tensor, general: Tensor, *, lam: float = 1e-8, steps: Literal["all", "first", "last"] = "all"
) -> Tensor:
    """Attention with a question divided by that with a general prompt, summed over layers and steps.

    Source: Ge et al., "Focusing by Contrastive Attention" (arXiv:2509.06461). The contrast
    A^Q / (A^G + lam), which takes out what draws attention whatever is asked, is summed over the layers and
    over the steps that both have; step t = 1, 2, ... weighs t.

    Args:
        question, general: [layers, steps, rows, columns], mean over heads.
        lam: regulariser, beside attention of 1e-4 to 1e-3. steps: all, or the first or last common one.

    Returns:
        [rows, columns] float64; only the order of its cells means something.
    """
    if question.shape[0] != general.shape[0] or question.shape[2:] != general.shape[2:]:
        raise ShapeError(
            "both must be [layers, steps, rows, columns] with equal layers and grids, got "
            f"{list(question.shape)} and {list(general.shape)}"
        )
    common = min(question.shape[1], general.shape[1])
    below = (general[:, :common].double() + lam).clamp_min(torch.finfo(torch.float32).tiny)
    summed = (question[:, :common].double() / below).sum(0)
    if steps == "all":
        weights = torch.arange(1, common + 1, dtype=torch.float64)
        return torch.einsum("t,trc->rc", weights, summed)
    return summed[0 if steps == "first" else -1]


def visual_entropy(attention: Tensor) -> Tensor:
    """Entropy in nats of attention on image tokens [..., n], renormalised over them: [...].

    CARVE's paper does not say whether it renormalises; values here are at most ln n.
    """
    share = attention.double() / attention.double().sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1)
