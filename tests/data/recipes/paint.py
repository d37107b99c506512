"""PAINT: which patches are local and which summarise, and their scores raised."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recipes.base import Array, Golden, causal, normal, probabilities, scores_of, softmax, weighted


def chosen(first: Array, later: Array, ratio: float) -> tuple[Array, Array, float]:
    """Local and summary patches, and the fence beyond which a patch summarises."""
    low, high = np.percentile(later, [25, 75])
    fence = high + 1.5 * (high - low)
    count = int((later > fence).sum())
    summary = np.sort(np.argsort(-later, kind="stable")[:count])
    local = np.argsort(-first, kind="stable")[: int(ratio * len(first))]
    return np.setdiff1d(local, summary), summary, fence


def goldens() -> Iterator[Golden]:
    """`token_selection` and `score_boost`."""
    rng = np.random.default_rng(5)
    words = (
        "class attention summed over heads; local = top share of the first layer, summary = beyond Q3 + "
        "1.5 IQR in the last layer but one; local minus summary"
    )
    golden = Golden("paint", "token_selection", words)
    for name, layers, heads, patches, ratio in (
        ("small", 3, 2, 25, 0.2),
        ("more", 4, 3, 49, 0.3),
        ("many", 3, 4, 81, 0.1),
    ):
        attention = probabilities(rng, layers, 1, heads, 1 + patches, sharpness=0.8)
        attention[-2, ..., [3, 9, 14]] *= 6.0
        attention = attention.astype(np.float32).astype(np.float64)
        first, later = (attention[at, 0].sum(0)[1:] for at in (0, -2))
        local, summary, fence = chosen(first, later, ratio)
        golden.case(
            name,
            {"local_ratio": ratio},
            {"cls_attn": attention},
            {
                "first_layer_sum": first,
                "penultimate_sum": later,
                "local": local,
                "summary": summary,
                "fence": np.array(fence),
            },
        )
    yield golden
    golden = Golden(
        "paint", "score_boost", "last row: local columns s + alpha |s|, summary columns s + beta |s|"
    )
    for name, (batch, heads, queries, keys, size), start, alpha, beta in (
        ("prefill", (1, 3, 19, 19, 6), 2, 0.6, 0.3),
        ("decode", (1, 4, 1, 26, 5), 3, 0.9, 0.4),
        ("batch", (2, 2, 15, 15, 7), 4, 0.4, 0.8),
    ):
        q, k, v = (
            normal(rng, batch, heads, queries, size),
            *(normal(rng, batch, heads, keys, size) for _ in "kv"),
        )
        local, summary = np.array([0, 4, 7]), np.array([2, 9])
        raw = scores_of(q, k)
        for columns, slope in ((local, alpha), (summary, beta)):
            raw[:, :, -1, start + columns] += slope * np.abs(raw[:, :, -1, start + columns])
        mask = np.broadcast_to(causal(queries, keys), (batch, 1, queries, keys)).copy()
        attention = softmax(np.where(mask < -1e30, -np.inf, raw))
        params = {"k_len": keys, "q_len": queries, "image_start": start, "alpha": alpha, "beta": beta}
        golden.case(
            name,
            params,
            {"q": q, "k": k, "v": v, "mask": mask, "local": local, "summary": summary},
            {"out_after": weighted(attention, v), "attn_after": attention},
        )
    yield golden
