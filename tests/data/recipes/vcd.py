"""VCD: the noise, and decoding with a second context; AGLA's decoding on the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from recipes.base import Array, Golden, normal
from recipes.llama import greedy
from recipes.logits import assembly, contrast
from recipes.pai import MODEL


def shares() -> Array:
    """[1000] share of the image at each step: the cumulated product of 1 - beta."""
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000))) * (0.5e-2 - 1e-5) + 1e-5
    return np.cumprod(1 - betas)


def decoded(
    ids: list[int], second: list[int], combine: Callable[[Array, Array, int], Array]
) -> tuple[Array, Array]:
    """Scores and tokens of both contexts combined, each step of two fresh forwards."""

    def step(said: list[int]) -> Array:
        return combine(MODEL.forward(ids + said)[-1], MODEL.forward(second + said)[-1], len(said))

    return greedy(step, ids)


def prompts(rng: np.random.Generator, length: int, start: int, end: int) -> tuple[list[int], list[int]]:
    """Token ids, and others that differ in the columns of the image."""
    ids = rng.integers(3, 61, length)
    second = ids.copy()
    second[start:end] = rng.integers(3, 61, end - start)
    return ids.tolist(), second.tolist()


def goldens() -> Iterator[Golden]:
    """`noise` and `e2e` of VCD, `e2e` of AGLA."""
    rng, share = np.random.default_rng(2), shares()
    golden = Golden("vcd", "noise", "sqrt(share) image + sqrt(1 - share) noise, share of 1000 sigmoid steps")
    for name, shape, at in (
        ("t500", (3, 7, 5), 500),
        ("t100_batch", (2, 3, 4, 6), 100),
        ("t999", (3, 5, 5), 999),
    ):
        image, noise = normal(rng, *shape), normal(rng, *shape)
        noisy = np.sqrt(share[at]) * image + np.sqrt(1 - share[at]) * noise
        golden.case(name, {"noise_step": at}, {"image": image, "noise": noise}, {"noisy": noisy})
    steps = np.array([0, 1, 17, 250, 499, 500, 750, 998, 999])
    kept = share[steps]
    outputs = {"sqrt_alpha_bar": np.sqrt(kept), "sqrt_one_minus_alpha_bar": np.sqrt(1 - kept)}
    golden.case("schedule", {"num_steps": 1000}, {"steps": steps}, outputs)
    yield golden
    golden = Golden(
        "vcd", "e2e", "greedy decoding by the contrast of two contexts; other ids play the noised image"
    )
    for name, alpha, beta, (length, start, end) in (
        ("mild", 0.5, 0.1, (17, 3, 10)),
        ("strong", 1.5, 0.02, (26, 5, 21)),
    ):
        ids, second = prompts(rng, length, start, end)
        scores, tokens = decoded(ids, second, lambda m, s, step, a=alpha, b=beta: contrast(m, s, a, b))
        golden.case(
            name,
            {"alpha": alpha, "beta": beta, "image_start": start, "image_end": end},
            {"input_ids": [ids], "second_ids": [second]},
            {"scores": scores, "tokens": tokens},
        )
    yield golden
    golden = Golden(
        "agla",
        "e2e",
        "as VCD's, with AGLA's sum; as released the second context is lost after the first token",
    )
    for name, alpha, beta, (length, start, end) in (
        ("a", 1.0, 0.2, (19, 2, 12)),
        ("b", 2.0, 0.5, (23, 6, 20)),
    ):
        ids, second = prompts(rng, length, start, end)
        outputs = {}
        for suffix in ("", "_as_released"):

            def combine(main: Array, local: Array, step: int, lost: bool = bool(suffix)) -> Array:
                return assembly(main, main if lost and step else local, alpha, beta)  # noqa: B023

            outputs[f"scores{suffix}"], outputs[f"tokens{suffix}"] = decoded(ids, second, combine)
        golden.case(
            name, {"alpha": alpha, "beta": beta}, {"input_ids": [ids], "second_ids": [second]}, outputs
        )
    yield golden
