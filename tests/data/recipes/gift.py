"""GIFT: where content words shift the gaze, the edited row, and which tokens a word covers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recipes.base import Array, Golden, causal, normal, probabilities, scores_of, softmax, weighted


def shift_of(attention: Array, rows: list[int], columns: slice) -> Array:
    """[rows, columns] mean over the half of the heads that shift most: relu of a row minus the row before."""
    shift = np.maximum(attention[:, rows, columns] - attention[:, [row - 1 for row in rows], columns], 0)
    half = len(attention) // 2
    return shift[np.argsort(-shift.sum((1, 2)))[:half]]


def saliency() -> Golden:
    """The map, and the weights made of it."""
    rng = np.random.default_rng(14)
    words = (
        "mean over layers, heads, content rows; clipped at mean +- 3 std (unbiased), min-max, exp(alpha S)"
    )
    golden = Golden("gift", "saliency", words)
    for name, layers, heads, length, (v0, v1), q0, used, content, alpha in (
        ("single", 2, 4, 22, (3, 11), 15, [1], [0, 2, 5], 4.0),
        ("layers", 3, 5, 24, (2, 14), 17, [0, 2], [1, 3, 4], 3.0),
        ("outlier", 1, 4, 28, (4, 19), 22, [0], [0, 1, 4], 5.0),
    ):
        attention = np.tril(probabilities(rng, layers, heads, length, length))
        if name == "outlier":
            attention[..., q0 + 1, 9] += 0.6
        attention = attention.astype(np.float32).astype(np.float64)
        rows, columns = [q0 + row for row in content], slice(v0, v1 + 1)
        each = np.concatenate([shift_of(attention[layer], rows, columns) for layer in used])
        mean = each.mean((0, 1))
        spread = mean.std(ddof=1)
        clipped = mean.clip(mean.mean() - 3 * spread, mean.mean() + 3 * spread)
        assert (name == "outlier") == bool((clipped != mean).any())
        found = (clipped - clipped.min()) / (clipped.max() - clipped.min())
        params = {
            "heads": heads,
            "prompt": length,
            "vision_start": v0,
            "vision_end": v1,
            "query_start": q0,
            "saliency_layers": used,
            "content_rows": content,
            "alpha": alpha,
        }
        outputs = {"mean_shift": mean, "saliency": found, "weights": np.exp(alpha * found)}
        golden.case(name, params, {"attn": attention}, outputs)
    return golden


def enhanced(attention: Array, vision: Array, query: Array, weights: Array, half: int) -> Array:
    """Last rows [H, L]: visual columns of half the heads weighted, query columns raised; rows sum to one."""
    edited = attention.copy()
    visual = np.argsort(-attention[:, vision].sum(1))[:half]
    before = attention[visual][:, vision].sum()
    edited[np.ix_(visual, vision)] *= weights
    ratio = edited[visual][:, vision].sum() / before
    asking = np.argsort(-attention[:, query].sum(1))[:half]
    edited[np.ix_(asking, query)] *= ratio
    return edited / edited.sum(1, keepdims=True)


def row_edit() -> Golden:
    """The edit of the last row."""
    rng = np.random.default_rng(15)
    golden = Golden(
        "gift", "row_edit", "heads are chosen on the unedited row; one ratio over all chosen visual heads"
    )
    for name, heads, kv_heads, queries, keys, size, (v0, v1), (q0, q1) in (
        ("prefill", 4, 4, 18, 18, 6, (2, 9), (12, 15)),
        ("decode_gqa", 6, 3, 1, 27, 8, (4, 17), (20, 24)),
        ("odd", 5, 1, 15, 15, 7, (1, 6), (9, 12)),
    ):
        q, k, v = normal(rng, 1, heads, queries, size), *(normal(rng, 1, kv_heads, keys, size) for _ in "kv")
        mask = causal(queries, keys)[None, None]
        attention = softmax(np.where(mask < -1e30, -np.inf, scores_of(q, k)))
        vision, query = np.arange(v0, v1 + 1), np.arange(q0, q1 + 1)
        weights = np.exp(3 * rng.random(len(vision))).astype(np.float32).astype(np.float64)
        attention[0, :, -1] = enhanced(attention[0, :, -1], vision, query, weights, heads // 2)
        params = {
            "heads": heads,
            "kv_heads": kv_heads,
            "q_len": queries,
            "k_len": keys,
            "beta": 1.0,
            "vision_start": v0,
            "vision_end": v1,
            "query_start": q0,
            "query_end": q1,
        }
        inputs = {"q": q, "k": k, "v": v, "mask": mask, "weights": weights}
        golden.case(
            name, params, inputs, {"attn_after": attention, "attn_output_after": weighted(attention, v)}
        )
    return golden


def align() -> Golden:
    """Tokens that overlap a content word, in the order of the words."""
    golden = Golden("gift", "align", "content words: nouns, names, verbs, adjectives, adverbs, numbers")
    content = {"NOUN", "PROPN", "VERB", "ADJ", "ADV", "NUM"}
    cases = {
        "plain": ("How many grey elephants stand here?", "ADV ADJ ADJ NOUN VERB ADV PUNCT", 5),
        "split": ("Does a toothbrush lie near Anna?", "AUX DET NOUN VERB ADP PROPN PUNCT", 4),
        "none": ("Is it of the?", "AUX PRON ADP DET PUNCT", 3),
    }
    for name, (sentence, tags, width) in cases.items():
        pieces = sentence.replace("?", " ?").split()
        starts, at = [], 0
        for piece in pieces:
            at = sentence.index(piece, at)
            starts.append(at)
            at += len(piece)
        words = [[piece, start, tag] for piece, start, tag in zip(pieces, starts, tags.split(), strict=True)]
        offsets = [[start, min(start + width, len(sentence))] for start in range(0, len(sentence), width)]
        expected = []
        for word, start, tag in words:
            for index, (low, high) in enumerate(offsets):
                if tag in content and low < start + len(word) and high > start and index not in expected:
                    expected.append(index)
        golden.case(
            name, {"sentence": sentence, "words": words, "offsets": offsets}, expected_token_indices=expected
        )
    return golden


def goldens() -> Iterator[Golden]:
    """All three."""
    yield from (saliency(), row_edit(), align())
