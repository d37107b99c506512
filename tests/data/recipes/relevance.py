"""AGLA: the relevance of patches to a text, from cross-attention and its gradient."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recipes.base import Golden, normal, probabilities


def goldens() -> Iterator[Golden]:
    """`relevance` of the 24 x 24 patches of BLIP."""
    rng = np.random.default_rng(18)
    words = (
        "mean over heads of A relu(gradient), first column dropped, padded text zeroed, summed over the "
        "text's tokens from the second on and divided by their number but for the last"
    )
    golden = Golden("agla", "relevance", words)
    for name, tokens, seen in (("n5", 3, 3), ("n7_padded", 4, 3)):
        attention, gradient = probabilities(rng, 1, 2, tokens, 577), normal(rng, 1, 2, tokens, 577)
        mask = (np.arange(tokens) < seen).astype(np.int64)[None]
        product = (attention * np.maximum(gradient, 0)).mean(1)[..., 1:] * mask[..., None]
        count = seen - 2
        relevance = product[:, 1 : count + 1].sum(1) / count
        inputs = {"attn": attention, "grad": gradient, "text_mask": mask}
        golden.case(name, {"text_tokens": tokens}, inputs, {"relevance": relevance.reshape(1, 24, 24)})
    yield golden
