"""CARVE's contrast: where one prompt attends more than another to the same image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from regaze.errors import ShapeError
from regaze.toolkit.analysis.maps import layer_maps
from regaze.toolkit.analysis.selection import first_trace, select_rows
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace


def contrast(
    question: Tensor, general: Tensor, *, lam: float = 1e-8, steps: Literal["all", "first", "last"] = "all"
) -> Tensor:
    """Attention with a question divided by that with a general prompt, summed over layers and steps.

    Source: Ge et al., "Focusing by Contrastive Attention" (arXiv:2509.06461). The contrast
    A^Q / (A^G + lam), which removes attention that does not depend on the question, is summed over layers and
    over the steps that both have; step t = 1, 2, ... weighs t.

    Args:
        question, general: [layers, steps, rows, columns], mean over heads.
        lam: regulariser, small against attention of 1e-4 to 1e-3.
        steps: all, or the first or last common one.

    Returns:
        [rows, columns] float64; only the order of the cells is meaningful.
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


def contrastive_map(
    record: Record | Trace,
    general: Record | Trace,
    *,
    lam: float = 1e-8,
    steps: Literal["all", "first", "last"] = "all",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    image: int = 0,
) -> Tensor:
    """Where a question draws more attention to the image than another prompt; see `contrast`.

    Args:
        record, general: of the question and of the other prompt, about the same image, with slices="image".

    Returns:
        [rows, columns] float64.
    """
    pair = []
    for each in (record, general):
        trace = first_trace(each)
        maps = layer_maps(trace, layers, heads, sample, image)[:, :, select_rows(trace, "answer", sample)]
        pair.append(maps.mean(1))
    return contrast(pair[0], pair[1], lam=lam, steps=steps)
