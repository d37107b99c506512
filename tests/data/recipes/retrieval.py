"""Retrieval heads: who copied which token of a needle, and where the needle lies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recipes.base import Golden, probabilities


def goldens() -> Iterator[Golden]:
    """`score` and `needle_span`."""
    rng = np.random.default_rng(13)
    words = (
        "a head copies at a step if its strongest column lies on the needle and holds the emitted token; "
        "released: copies / length, paper: different tokens copied / length"
    )
    golden = Golden("retrieval", "score", words)
    for name, layers, heads, length, (start, end), steps in (
        ("short", 2, 3, 25, (11, 16), 7), ("repeats", 3, 2, 31, (4, 12), 12)
    ):  # fmt: skip
        prompt = rng.permutation(200)[:length] + 20
        output = rng.choice(prompt[start:end], steps)
        attention = probabilities(rng, steps, layers, heads, length + steps - 1)
        for step in range(steps):
            attention[step, ..., length + step :] = 0  # keys that are not there yet
            holds = np.flatnonzero(prompt == output[step])[0]
            copying = rng.random((layers, heads)) < 0.6
            attention[step, copying, holds] = 2.0
        columns = attention.argmax(-1)
        released, kinds = np.zeros((layers, heads)), np.zeros((layers, heads))
        for layer in range(layers):
            for head in range(heads):
                copied = [
                    output[s] for s in range(steps)
                    if start <= columns[s, layer, head] < end and prompt[columns[s, layer, head]] == output[s]
                ]  # fmt: skip
                released[layer, head] = len(copied) / (end - start)
                kinds[layer, head] = len(set(copied)) / (end - start)
        golden.case(
            name,
            {"needle_start": start, "needle_end": end},
            {"prompt": prompt, "output": output, "attn": attention, "argmax": columns},
            {"score": released, "score_set": kinds, "output_used": output},
        )
    yield golden
    golden = Golden(
        "retrieval",
        "needle_span",
        "released: the first window that shares more than 0.9 of the needle's tokens",
    )
    prompts = {
        "plain": (list(range(50, 70)) + list(range(1, 9)) + [90, 91], list(range(1, 9))),
        "long": (list(range(50, 62)) + list(range(1, 31)) + [90], list(range(1, 31))),
        "missing": (list(range(50, 80)), [1, 2, 3]),
        "at the start": ([5, 6, 7, 8, *range(50, 60)], [5, 6, 7, 8]),
    }
    for name, (prompt, needle) in prompts.items():
        size, found, exact = len(needle), -1, -1
        for at in range(len(prompt) - size + 1):
            window = prompt[at : at + size]
            if found < 0 and len(set(window) & set(needle)) / len(set(needle)) > 0.9:
                found = at
            if exact < 0 and window == needle:
                exact = at
        golden.case(name, {"prompt": prompt, "needle": needle}, found_start=found, exact_start=exact)
    yield golden
