"""DoLa: which early layer is contrasted, and the scores of a step and of a sequence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recipes.base import Array, Golden, log_softmax, normal


def kl(p: Array, q: Array) -> Array:
    """KL(p || q) of log-probabilities, over the last axis."""
    return (np.exp(p) * (p - q)).sum(-1)


def jensen_shannon(p: Array, q: Array) -> Array:
    """In nats."""
    middle = np.logaddexp(p, q) - np.log(2)
    return (kl(p, middle) + kl(q, middle)) / 2


def swapped(p: Array, q: Array) -> Array:
    """The release's: arguments of KL exchanged, mean over the vocabulary."""
    middle = np.log((np.exp(p) + np.exp(q)) / 2)
    return (kl(middle, p) + kl(middle, q)) / 2 / p.shape[-1]


def contrasted(final: Array, early: Array, top: float) -> Array:
    """[B, V] difference of log-probabilities, cut where the final layer thinks little of a token."""
    least = final.max(-1, keepdims=True) + np.log(top)
    return np.where(final < least, -np.inf, final - early)


def cases(
    rng: np.random.Generator, agree: bool, shape: tuple[int, int, int, int], candidates: list[int]
) -> Array:
    """Logits [steps, layers, B, V] for which both divergences choose the same layers, or never do."""
    while True:
        logits = normal(rng, *shape, scale=1.5) * np.linspace(0.6, 2.0, shape[1])[None, :, None, None]
        logits = logits.astype(np.float32).astype(np.float64)
        final = log_softmax(logits[:, -1:])
        early = log_softmax(logits[:, candidates])
        ours, theirs = jensen_shannon(final, early).argmax(1), swapped(final, early).argmax(1)
        if (ours == theirs).all() if agree else (ours != theirs).all():
            return logits


def goldens() -> Iterator[Golden]:
    """`contrast` and `sequence_score`."""
    rng = np.random.default_rng(6)
    words = (
        "log p_final - log p_early of the candidate with the largest divergence, -inf where log p_final < "
        "max + ln(relative_top); js_true in nats; code_divergence has KL's arguments swapped and is a "
        "mean"
    )
    golden = Golden("dola", "contrast", words)
    for name, kind, shape, candidates, top in (
        ("low", "paper", (3, 9, 1, 33), [0, 2, 4, 6], 0.1),
        ("high", "paper", (2, 13, 1, 27), [6, 8, 10], 0.03),
        ("wide", "paper", (2, 7, 1, 50), [0, 2, 4], 0.2),
        ("as_released_swapped_kl", "as_released", (2, 9, 1, 30), [0, 2, 4, 6], 0.1),
    ):
        logits = cases(rng, kind == "paper", shape, candidates)
        final, early = log_softmax(logits[:, -1]), log_softmax(logits[:, candidates])
        true, released = jensen_shannon(final[:, None], early), swapped(final[:, None], early)
        layer = (true if kind == "paper" else released)[..., 0].argmax(1)
        scores = contrasted(final, early[np.arange(len(layer)), layer], top)
        params = {
            "vocab": shape[-1],
            "n_layers": shape[1],
            "batch": 1,
            "mature_layer": shape[1] - 1,
            "candidates": candidates,
            "relative_top": top,
            "static_premature": None,
        }
        outputs = {"scores": scores, "code_divergence": released, "js_true": true}
        golden.case(name, params, {"logits": logits}, outputs, kind=kind)
    yield golden
    golden = Golden(
        "dola", "sequence_score", "the difference of a row, log-softmaxed once more; a cut token counts -1000"
    )
    for name, prefix, length, vocabulary, top in (("short", 3, 6, 31, 0.1), ("long", 5, 14, 23, 0.05)):
        candidates, layers = [0, 2, 4], 7
        logits = cases(rng, True, (length, layers, 1, vocabulary), candidates)[:, :, 0].swapaxes(0, 1)
        ids = rng.integers(0, vocabulary, length)
        total = 0.0
        for row in range(prefix - 1, length - 1):
            final, early = log_softmax(logits[-1, row]), log_softmax(logits[candidates, row])
            chosen = early[jensen_shannon(final, early).argmax()]
            score = log_softmax(final - chosen)[ids[row + 1]]
            total += -1000.0 if final[ids[row + 1]] < final.max() + np.log(top) else score
        params = {"prefix": prefix, "candidates": candidates, "relative_top": top}
        golden.case(name, params, {"logits": logits, "ids": ids}, {"log_prob_sum": np.array(total)})
    yield golden
