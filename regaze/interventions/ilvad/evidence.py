"""ILVAD's numbers: which image tokens light up between layers, and how well tokens of the text are grounded.

Source: ILVAD (arXiv:2605.20965).
"""

from __future__ import annotations

import torch
from torch import Tensor

from regaze.interventions.common.ranking import half_of_heads, saliency_map
from regaze.kernels.head_rules import top_heads


def seen_by_half(weights: Tensor) -> Tensor:
    """Weights [B, Hq, R, n] of rows on image tokens, averaged over each row's heads with most: [B, R, n]."""
    chosen = top_heads(weights.sum(-1), half_of_heads(weights.shape[1]))
    return (weights * chosen[..., None]).sum(1) / half_of_heads(weights.shape[1])


def evidence_map(mean: Tensor, valid: Tensor, tau: float, above_average: bool = True) -> Tensor:
    """The evidence S in [0, 1] of image tokens, 0 everywhere if none lights up: [B, n].

    A token is bright in a layer where it has more than `tau` times the mean of that layer. It lights up as
    often as it is bright and was not in the layer before.

    Args:
        mean: [layers, B, n], attention on each image token. valid: [B, n] bool, those that exist.
        above_average: only tokens with more attention than the average, over layers, can be evidence.
    """
    if not valid.any():
        return torch.zeros(valid.shape)
    count = valid.sum(1).clamp_min(1)
    values = torch.where(valid, mean, 0.0)
    bright = values > tau * values.sum(-1, keepdim=True) / count[:, None]
    rises = (bright[1:] & ~bright[:-1]).sum(0).float()
    if above_average:
        over_layers = values.mean(0)
        rises = rises * (over_layers > over_layers.sum(1, keepdim=True) / count[:, None])
    return saliency_map(rises, valid)


def grounding(image: Tensor, evidence: Tensor) -> Tensor:
    """How much rows look at the evidence, in the half of the heads that look at little else of the image.

    Args:
        image, evidence: [B, Hq, R], masses on the image, and on it weighted by its evidence.

    Returns:
        [B, R], the mean of these heads' `evidence`.
    """
    count = half_of_heads(image.shape[1])
    return (evidence * top_heads(share_of_evidence(image, evidence), count)).sum(1) / count


def share_of_evidence(image: Tensor, evidence: Tensor) -> Tensor:
    return evidence / (image + 1e-8)


def text_factors(scores: Tensor, scored: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Factors of text tokens from how well they are grounded, [B, n]; and the scores within 3 deviations.

    Scores are scaled to [0, 1] by their least and largest, then held within 3 deviations; a factor is that
    plus `beta`. It is 1 for tokens without a score, and for all where nothing is to be ranked.

    Args:
        scores: [B, n]. scored: [B or 1, n] bool, which tokens have one.
    """
    count = scored.sum(1, keepdim=True)
    low = torch.where(scored, scores, torch.inf).amin(1, keepdim=True)
    span = torch.where(scored, scores, -torch.inf).amax(1, keepdim=True) - low
    values = torch.where(scored, scores, 0.0)
    mean = values.sum(1, keepdim=True) / count.clamp_min(1)
    variance = torch.where(scored, (values - mean).square(), 0.0).sum(1, keepdim=True)
    reach = 3 * (variance / (count - 1).clamp_min(1)).sqrt()
    held = torch.where(count > 1, torch.minimum(torch.maximum(scores, mean - reach), mean + reach), scores)
    ranked = scored & (span > 0)
    factors = torch.where(ranked, (held - low) / torch.where(span > 0, span, 1.0) + beta, 1.0)
    return factors, torch.where(scored, held, scores)
