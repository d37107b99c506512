"""A small Llama in plain numpy, which computes every row anew: no cache, one prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from recipes.base import Array, causal, normal, softmax

#: called with (layer, hidden state that enters it [L, D], scores or weights [H, L, L]); gives the edited ones
Edit = Callable[[int, Array, Array], Array]


class Llama:
    """Random weights, and forwards over token ids.

    Args:
        planted: value of the first two dimensions of these tokens' embeddings, of token ids.
    """

    def __init__(self, seed: int, layers: int = 4, planted: dict[int, tuple[float, float]] | None = None):
        self.vocabulary, self.width, self.inner = 61, 32, 24
        self.layers, self.heads, self.kv_heads = layers, 4, 2
        rng, d = np.random.default_rng(seed), self.width
        kv = d * self.kv_heads // self.heads
        self.weights = {"model.embed_tokens.weight": normal(rng, self.vocabulary, d)}
        for token, values in (planted or {}).items():
            self.weights["model.embed_tokens.weight"][token, :2] = values
        for layer in range(layers):
            shapes = {
                "self_attn.q_proj": (d, d),
                "self_attn.k_proj": (kv, d),
                "self_attn.v_proj": (kv, d),
                "self_attn.o_proj": (d, d),
                "mlp.gate_proj": (self.inner, d),
                "mlp.up_proj": (self.inner, d),
                "mlp.down_proj": (d, self.inner),
            }
            for name, shape in shapes.items():
                self.weights[f"model.layers.{layer}.{name}.weight"] = normal(rng, *shape, scale=0.25)
            for name in ("input_layernorm", "post_attention_layernorm"):
                self.weights[f"model.layers.{layer}.{name}.weight"] = 1 + normal(rng, d, scale=0.1)
        self.weights["model.norm.weight"] = 1 + normal(rng, d, scale=0.1)
        self.weights["lm_head.weight"] = normal(rng, self.vocabulary, d, scale=0.4)

    def forward(self, ids: list[int], scores: Edit | None = None, weights: Edit | None = None) -> Array:
        """[L, V] logits; the edits change scores before, or weights after the softmax."""
        x = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.layers):
            x = x + self.attention(layer, x, scores, weights)
            h = self.norm(x, f"model.layers.{layer}.post_attention_layernorm")
            gate, up, down = (self.of(layer, f"mlp.{name}_proj") for name in ("gate", "up", "down"))
            inner = h @ gate.T
            x = x + (inner / (1 + np.exp(-inner)) * (h @ up.T)) @ down.T
        return self.norm(x, "model.norm") @ self.weights["lm_head.weight"].T

    def attention(self, layer: int, x: Array, scores: Edit | None, weights: Edit | None) -> Array:
        """What the attention of a layer adds to its input [L, D]."""
        length, size = len(x), self.width // self.heads
        h = self.norm(x, f"model.layers.{layer}.input_layernorm")
        q, k, v = (
            (h @ self.of(layer, f"self_attn.{name}_proj").T).reshape(length, -1, size).swapaxes(0, 1)
            for name in "qkv"
        )
        group = self.heads // self.kv_heads
        q, k = rotated(q), np.repeat(rotated(k), group, 0)
        raw = q @ k.swapaxes(1, 2) / np.sqrt(size) + causal(length, length)
        attention = softmax(raw if scores is None else scores(layer, x, raw))
        if weights is not None:
            attention = weights(layer, x, attention)
        out = attention @ np.repeat(v, group, 0)
        return out.swapaxes(0, 1).reshape(length, -1) @ self.of(layer, "self_attn.o_proj").T

    def norm(self, x: Array, name: str) -> Array:
        """RMSNorm."""
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * self.weights[f"{name}.weight"]

    def of(self, layer: int, name: str) -> Array:
        """A weight of a layer."""
        return self.weights[f"model.layers.{layer}.{name}.weight"]

    def save(self, folder: Path) -> None:
        """As transformers reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.inner,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "dtype": "float32",
        }
        (folder / "e2e_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        tensors = {name: weight.astype(np.float32) for name, weight in self.weights.items()}
        save_file(tensors, folder / "e2e_weights.safetensors", metadata={"format": "pt"})


def rotated(x: Array) -> Array:
    """[H, L, D] with rotary positions, halves turned against each other."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = (np.concatenate([f(angles)] * 2, -1) for f in (np.cos, np.sin))
    turned = np.concatenate([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin


def greedy(step: Callable[[list[int]], Array], ids: list[int], steps: int = 5) -> tuple[Array, Array]:
    """[steps, V] scores and [steps] tokens: each step's scores are of the tokens that those before chose."""
    said: list[int] = []
    rows = []
    for _ in range(steps):
        rows.append(step(said))
        said.append(int(rows[-1].argmax()))
    return np.stack(rows), np.array(said)
