"""PAI: scores of image columns raised by a part of their size, and guidance without the image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from recipes import base
from recipes.base import Array, Golden, causal, normal, scores_of, softmax, weighted
from recipes.llama import Edit, Llama, greedy
from recipes.logits import guidance

#: the model of the end-to-end sets of PAI, VCD and AGLA
MODEL = Llama(seed=20)


def boost(scores: Array, rows: slice, columns: slice, alpha: float) -> Array:
    """s + alpha |s| at these rows and columns."""
    edited = scores.copy()
    edited[..., rows, columns] += alpha * np.abs(edited[..., rows, columns])
    return edited


def score_boost() -> Golden:
    """One attention layer, prefill and decode."""
    rng = np.random.default_rng(3)
    golden = Golden("pai", "score_boost", "s + alpha |s| in the last row, image columns, before the softmax")
    for name, (batch, heads, queries, keys, size), (start, end), alpha, pad in (
        ("prefill", (1, 4, 17, 17, 8), (2, 11), 0.5, 0),
        ("decode", (1, 3, 1, 23, 6), (4, 19), 0.3, 0),
        ("padded", (2, 5, 13, 13, 4), (5, 10), 0.8, 3),
    ):
        q, k, v = (
            normal(rng, batch, heads, queries, size),
            *(normal(rng, batch, heads, keys, size) for _ in "kv"),
        )
        mask = np.broadcast_to(causal(queries, keys), (batch, 1, queries, keys)).copy()
        mask[batch - 1, ..., :pad] = np.finfo(np.float32).min
        raw = scores_of(q, k)
        edited = np.where(
            mask < -1e30, -np.inf, boost(raw, slice(queries - 1, queries), slice(start, end), alpha)
        )
        params = {
            "batch": batch,
            "heads": heads,
            "q_len": queries,
            "k_len": keys,
            "head_dim": size,
            "image_start": start,
            "image_end": end,
            "alpha": alpha,
        }
        inputs = {"q": q, "k": k, "v": v, "mask": mask}
        golden.case(name, params, inputs, {"out_after": weighted(softmax(edited), v)})
    return golden


def variants(ids: list[int], params: dict[str, Any]) -> dict[str, Array]:
    """Scores and tokens of boost, guidance, both, and both as released."""
    start, end, alpha, gamma = (params[name] for name in ("image_start", "image_end", "alpha", "gamma"))
    text = ids[:start] + ids[end:]
    layers = range(params["layer_start"], params["layer_end"])

    def raised(first: int) -> Edit:
        """Rows from `first` on, each of which was once the last."""

        def edit(layer: int, hidden: Array, scores: Array) -> Array:
            rows, columns = slice(first, len(hidden)), slice(start, end)
            return boost(scores, rows, columns, alpha) if layer in layers else scores

        return edit

    outputs = {}
    for kind, first, guided in (
        ("off", None, False),
        ("boost", len(ids) - 1, False),
        ("guided", None, True),
        ("boost_guided", len(ids) - 1, True),
        ("as_released", len(ids), True),
    ):

        def step(said: list[int], first: int | None = first, guided: bool = guided) -> Array:
            main = MODEL.forward(ids + said, scores=None if first is None else raised(first))[-1]
            return guidance(main, MODEL.forward(text + said)[-1], gamma, params["cut"]) if guided else main

        prefix = "logits" if kind == "off" else "scores"
        outputs[f"{prefix}_{kind}"], outputs[f"tokens_{kind}"] = greedy(step, ids)
    assert (
        np.abs(outputs["scores_boost"][0] - outputs["logits_off"][0]).max() > 0.1
    )  # or the case shows nothing
    return outputs


def goldens() -> Iterator[Golden]:
    """`score_boost`, and `e2e` with the model."""
    yield score_boost()
    MODEL.save(base.FOLDER / "methods/pai")
    rng = np.random.default_rng(4)
    golden = Golden("pai", "e2e", "greedy decoding; the released order leaves the prefill unedited")
    for name, length, more in (
        (
            "mild",
            19,
            {"image_start": 3, "image_end": 12, "layer_start": 1, "layer_end": 4, "alpha": 0.5, "gamma": 1.1},
        ),
        (
            "late",
            24,
            {"image_start": 5, "image_end": 20, "layer_start": 2, "layer_end": 4, "alpha": 0.9, "gamma": 1.6},
        ),
    ):
        params = {**more, "cut": 0.1}
        ids = rng.integers(3, 61, length).tolist()
        golden.case(name, params, {"input_ids": [ids]}, variants(ids, params))
    yield golden
