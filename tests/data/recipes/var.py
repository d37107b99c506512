"""VAR: sinks of a hidden state, and attention moved from them to the image's other tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from recipes import base
from recipes.base import Array, Golden, normal, softmax
from recipes.llama import Edit, Llama, greedy


def sink_values(hidden: Array, dims: list[int]) -> Array:
    """[..., L] the largest of the sink dimensions over the root mean square."""
    size = np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)
    return np.abs(hidden[..., dims] / size).max(-1)


def redistributed(weights: Array, sinks: Array, image: Array, params: dict[str, Any]) -> tuple[Array, Array]:
    """Rows [..., L] and which of them were edited.

    A row with at least min_image_mass on the image, of which at least the share rho is not on sinks, loses
    the part p of what lies on sinks; the image's other columns get it in proportion to what they have.
    """
    others = image & ~sinks
    mass = weights[..., image].sum(-1)
    free = weights[..., others].sum(-1)
    chosen = (mass >= params["min_image_mass"]) & (free >= params["rho_paper"] * mass) & (free > 0)
    moved = params["p_paper"] * weights[..., sinks].sum(-1)
    edited = weights.copy()
    edited[..., sinks] *= 1 - params["p_paper"]
    edited[..., others] *= 1 + np.divide(moved, free, out=np.zeros_like(free), where=free > 0)[..., None]
    chosen &= bool((sinks & image).any() or not params.get("as_released"))
    return np.where(chosen[..., None], edited, weights), chosen


def attention_of(
    rng: np.random.Generator, heads: int, rows: int, keys: int, sinks: Array, image: Array
) -> Array:
    """[1, H, rows, keys] weights with much on sinks and on the image, by head more or less of each."""
    scores = normal(rng, 1, heads, rows, keys)
    scores[..., sinks] += 1.5 * normal(rng, 1, heads, rows, 1)
    scores[..., image] += normal(rng, 1, heads, rows, 1)
    seen = np.arange(keys)[None] <= np.arange(rows)[:, None] + keys - rows
    return softmax(np.where(seen, scores, -np.inf)).astype(np.float32).astype(np.float64)


def redistribute() -> Golden:
    """One layer: prefill, and decode steps whose own columns come behind."""
    rng = np.random.default_rng(16)
    golden = Golden(
        "var", "redistribute", "phi > tau is a sink; rows behind the image are edited, and decode rows"
    )
    for name, heads, length, width, dims, (start, size), rho, p, steps in (
        ("plain", 4, 24, 32, [3, 17], (4, 13), 0.5, 0.4, 0),
        ("strict", 5, 27, 24, [0, 5, 9], (3, 17), 0.7, 0.7, 0),
        ("decode", 3, 20, 36, [35], (5, 9), 0.4, 0.5, 2),
        ("loose", 2, 19, 32, [1, 2], (2, 11), 0.35, 0.9, 1),
    ):
        params = {
            "num_layers": 6,
            "layer": 3,
            "image_start": start,
            "image_len": size,
            "sink_dims": dims,
            "tau": 2.5,
            "rho_paper": rho,
            "p_paper": p,
            "min_image_mass": 0.2,
        }
        hidden = normal(rng, 1, length, width)
        hidden[:, :, dims] *= 0.2
        for at in (0, start + 2, start + 6, length - 2):
            hidden[0, at, dims[0]] = 14.0
        hidden = hidden.astype(np.float32).astype(np.float64)
        phi = sink_values(hidden, dims)
        sinks, columns = phi[0] > params["tau"], np.arange(length)
        image = (columns >= start) & (columns < start + size)
        weights = attention_of(rng, heads, length, length, sinks, image)
        edited, rows = redistributed(weights, sinks, image, params)
        behind = columns >= start + size
        edited, rows = np.where(behind[:, None], edited, weights), rows & behind
        # Some rows have too little on the image, or too much of it on sinks.
        assert 0 < (share := rows[..., behind].mean()) < 1, (name, share)
        inputs = {"hidden": hidden, "attn": weights}
        outputs = {"phi": phi, "sink_mask": sinks[None], "attn": edited, "edited_rows": rows}
        for step in range(1, steps + 1):
            more = np.zeros(step, bool)
            wide = np.concatenate([sinks, more]), np.concatenate([image, more])
            decode = attention_of(rng, heads, 1, length + step, *wide)
            inputs[f"attn_dec{step}"] = decode
            outputs[f"attn_dec{step}"] = redistributed(decode, *wide, params)[0]
        golden.case(name, params, inputs, outputs)
    return golden


def end_to_end() -> Golden:
    """Greedy decoding; layers from 2 on, as released with the last one."""
    planted = dict.fromkeys((5, 6, 7), (9.0, -4.0))
    model = Llama(seed=21, layers=6, planted=planted)
    model.save(base.FOLDER / "methods/var")
    rng = np.random.default_rng(17)
    golden = Golden("var", "e2e", "sinks of each layer from the hidden state that enters it at prefill")
    for name, length, (start, size), rho, p, at in (
        ("half", 21, (3, 12), 0.5, 0.4, (0, 5, 9)),
        ("much", 26, (4, 15), 0.3, 0.8, (0, 6, 11, 23)),
    ):
        ids = rng.integers(8, 61, length)
        ids[list(at)] = rng.choice(list(planted), len(at))
        params = {
            "image_start": start,
            "image_len": size,
            "sink_dims": [0, 1],
            "tau": 2.2,
            "min_image_mass": 0.2,
            "rho_paper": rho,
            "p_paper": p,
        }
        prompt, outputs, seen = ids.tolist(), {}, {}

        def moving(
            layers: range, released: bool, into: dict[int, Array], given: dict[str, Any] = params
        ) -> Edit:
            length, start, size = len(prompt), given["image_start"], given["image_len"]  # noqa: B023

            def edit(layer: int, hidden: Array, weights: Array) -> Array:
                if layer not in layers:
                    return weights
                sinks = np.zeros(len(hidden), bool)
                sinks[:length] = sink_values(hidden[:length], given["sink_dims"]) > given["tau"]
                columns = np.arange(len(hidden))
                image = (columns >= start) & (columns < start + size)
                edited, _ = redistributed(weights, sinks, image, {**given, "as_released": released})
                edited = np.where((columns >= start + size)[:, None], edited, weights)
                if len(hidden) == length:
                    into[layer] = edited[:, -1]
                return edited

            return edit

        for kind, layers, released in (
            ("off", range(0), False),
            ("paper", range(2, 5), False),
            ("as_released", range(2, 6), True),
        ):

            def step(said: list[int], layers: range = layers, released: bool = released) -> Array:
                return model.forward(prompt + said, weights=moving(layers, released, seen))[-1]  # noqa: B023

            outputs[f"logits_{kind}"], outputs[f"tokens_{kind}"] = greedy(step, prompt)
        for kind in ("paper", "as_released"):  # or the case shows nothing
            assert np.abs(outputs[f"logits_{kind}"][0] - outputs["logits_off"][0]).max() > 0.02
        outputs["attn_layer2_last_row"] = seen[2]
        golden.case(name, params, {"input_ids": [prompt]}, outputs)
    return golden


def goldens() -> Iterator[Golden]:
    """Both."""
    yield from (redistribute(), end_to_end())
