"""Contrasts of what is predicted from several fields of view."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regaze.interventions.divergences import jensen_shannon, reversed_jensen_shannon


def furthest_pairs(logits: Tensor, count: int, as_released: bool = False) -> list[tuple[int, int]]:
    """The pairs (a, b), a < b, of fields whose distributions are furthest apart, furthest first.

    Args:
        logits: [fields, V]. as_released: by the divergence whose terms have their arguments exchanged.
    """
    log_p = logits.double().log_softmax(-1)
    first, second = torch.triu_indices(len(logits), len(logits), offset=1, device=logits.device)
    divergence = reversed_jensen_shannon if as_released else jensen_shannon
    order = divergence(log_p[first], log_p[second]).argsort(descending=True, stable=True)[:count]
    return list(zip(first[order].tolist(), second[order].tolist(), strict=True))


def contrasted(logits: Tensor, pairs: list[tuple[int, int]], weight: float, beta: float = 0.0) -> Tensor:
    """l_b - weight l_a and l_a - weight l_b of each pair (a, b), [2 pairs, V].

    Args:
        logits: [fields, V].
        beta: exclude tokens less likely than beta times the likeliest one of the field that is added.
    """
    both = [(one, other) for a, b in pairs for one, other in ((b, a), (a, b))]
    kept, removed = (logits[[pair[part] for pair in both]] for part in (0, 1))
    scores = kept - weight * removed
    if beta > 0.0:
        scores = scores.masked_fill(kept < kept.amax(-1, keepdim=True) + math.log(beta), -torch.inf)
    return scores
