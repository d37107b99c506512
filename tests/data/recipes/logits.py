"""Two sets of logits combined: VCD's and AGLA's contrasts, PAI's guidance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recipes.base import Array, Golden, log_softmax, normal


def cut(scores: Array, main: Array, beta: float) -> Array:
    """-inf where the unmodified logit is more than ln(beta) below the largest."""
    return np.where(main < main.max(-1, keepdims=True) + np.log(beta), -np.inf, scores)


def contrast(main: Array, second: Array, alpha: float, beta: float) -> Array:
    """VCD."""
    return cut((1 + alpha) * main - alpha * second, main, beta)


def assembly(main: Array, second: Array, alpha: float, beta: float) -> Array:
    """AGLA."""
    return cut(main + alpha * second, main, beta)


def guidance(cond: Array, uncond: Array, gamma: float, beta: float) -> Array:
    """PAI: log-scores, not cut where gamma is 1."""
    main, text = log_softmax(cond), log_softmax(uncond)
    return main if gamma == 1 else cut(gamma * (main - text) + text, main, beta)


def goldens() -> Iterator[Golden]:
    """VCD's and AGLA's `combine`, PAI's `guidance`."""
    rng = np.random.default_rng(1)
    words = {
        "vcd": "(1 + alpha) main - alpha second, -inf where main < ln(beta) + max(main)",
        "agla": "main + alpha second, -inf where main < ln(beta) + max(main)",
    }
    settings = [
        ("one", (3, 1, 41), 1.0, 0.1),
        ("batch", (2, 3, 29), 0.5, 0.3),
        ("wide", (1, 2, 70), 2.0, 0.02),
    ]
    for method, combine in (("vcd", contrast), ("agla", assembly)):
        golden = Golden(method, "combine", words[method])
        for name, shape, alpha, beta in settings:
            main, second = normal(rng, *shape, scale=2.0), normal(rng, *shape, scale=2.0)
            outputs = {"scores": combine(main, second, alpha, beta)}
            golden.case(
                name,
                {"alpha": alpha, "beta": beta},
                {"logits_main": main, "logits_second": second},
                outputs,
            )
        yield golden
    golden = Golden("pai", "guidance", "gamma (lc - lu) + lu of log-softmaxes, cut as above; gamma 1 is lc")
    for name, shape, gamma in (
        ("weak", (2, 1, 43), 1.1),
        ("strong", (1, 4, 31), 2.5),
        ("none", (1, 2, 20), 1),
    ):
        cond, uncond = normal(rng, *shape, scale=2.0), normal(rng, *shape, scale=2.0)
        outputs = {"scores": guidance(cond, uncond, gamma, 0.1)}
        golden.case(
            name, {"gamma": gamma, "cut": 0.1}, {"cond_logits": cond, "uncond_logits": uncond}, outputs
        )
    yield golden
