"""Files of goldens, and what several recipes compute: attention in plain numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

FOLDER = Path(__file__).resolve().parents[1] / "goldens"
Array = NDArray[Any]
#: shares and rates, compared more closely than float32 tells apart
DOUBLE = ("change_rate", "density", "fused", "keep_rate", "log_prob_sum", "score", "score_set")


class Golden:
    """One file of cases, `methods/METHOD/NAME.json` with its tensors beside it.

    Attributes:
        convention: the equations, in words.
    """

    def __init__(self, method: str, name: str, convention: str):
        self.path = FOLDER / "methods" / method / name
        self.about = {
            "method": method,
            "set": name,
            "convention": convention,
            "made_by": "tests/data/make.py",
        }
        self.cases: dict[str, dict[str, Any]] = {}
        self.tensors: dict[str, Array] = {}

    def case(
        self,
        name: str,
        params: dict[str, Any],
        inputs: dict[str, Any] | None = None,
        outputs: dict[str, Any] | None = None,
        weights: dict[str, Any] | None = None,
        kind: str = "paper",
        **more: Any,
    ) -> None:
        """Add a case; float64 results become float32."""
        self.cases[name] = {"kind": kind, "params": params, **more}
        for part, arrays in (("in", inputs), ("out", outputs), ("weights", weights)):
            for key, value in (arrays or {}).items():
                array = np.asarray(value)
                single = array.dtype == np.float64 and key not in DOUBLE
                dtype = np.float32 if single else array.dtype
                self.tensors[f"{name}/{part}/{key}"] = np.array(array, dtype, order="C")

    def save(self) -> None:
        """Write both files."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cases = ",\n".join(f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in self.cases.items())
        about = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in self.about.items())
        text = f'{{\n{about} "cases": {{\n{cases}\n }}\n}}\n'
        self.path.with_suffix(".json").write_text(text, encoding="utf-8")
        if self.tensors:
            save_file(self.tensors, self.path.with_suffix(".safetensors"))


def total() -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    """Standard normal numbers that float32 holds exactly, so that inputs mean the same everywhere."""
    return (scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)


def softmax(scores: Array) -> Array:
    """Over the last axis; a row of -inf becomes 0."""
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def log_softmax(logits: Array) -> Array:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def causal(queries: int, keys: int) -> Array:
    """[queries, keys] additive: the last query sees all keys."""
    seen = np.arange(keys)[None] <= np.arange(queries)[:, None] + keys - queries
    return np.where(seen, 0.0, np.finfo(np.float32).min)


def scores_of(q: Array, k: Array) -> Array:
    """[B, H, Lq, Lk] scaled products; key heads are repeated for their query heads."""
    k = np.repeat(k, q.shape[1] // k.shape[1], 1)
    return q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])


def weighted(attention: Array, v: Array) -> Array:
    """[B, Lq, H, D], as releases return it."""
    v = np.repeat(v, attention.shape[1] // v.shape[1], 1)
    return (attention @ v).swapaxes(1, 2)


def probabilities(rng: np.random.Generator, *shape: int, sharpness: float = 1.0) -> Array:
    """Random attention whose rows sum to one, exact in float32 up to its rounding."""
    return softmax(normal(rng, *shape, scale=sharpness)).astype(np.float32).astype(np.float64)
