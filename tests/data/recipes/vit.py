"""A vision transformer whose patches look at themselves alone, or not at the class; the class lens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recipes.base import Array, Golden, normal, softmax


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def projected(x: Array, qkv: Array, bias: Array, heads: int) -> tuple[Array, Array]:
    """Attention weights [B, H, N, N] and values [B, H, N, D] of tokens [B, N, C]."""
    batch, tokens, width = x.shape
    split = (x @ qkv.T + bias).reshape(batch, tokens, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)
    q, k, v = split
    return softmax(q @ k.swapaxes(-1, -2) / np.sqrt(width // heads)), v


def joined(attention: Array, v: Array) -> Array:
    """[B, N, C] of all heads."""
    out = (attention @ v).swapaxes(1, 2)
    return out.reshape(*out.shape[:2], -1)


def goldens() -> Iterator[Golden]:
    """`identifiability` and `attention_perturbation`."""
    rng = np.random.default_rng(7)
    words = (
        "z = head(norm(x)); rank = number of classes above the true one; identifiability = 1 - rank / "
        "classes; change rate: patches whose true logit rises from layer to layer"
    )
    golden = Golden("vit_cls", "identifiability", words)
    layers, images, tokens, width, classes, true = 4, 2, 9, 10, 17, 5
    hidden = normal(rng, layers, images, tokens, width)
    gain, shift = 1 + normal(rng, width, scale=0.1), normal(rng, width, scale=0.1)
    head, bias = normal(rng, classes, width), normal(rng, classes)
    z = layer_norm(hidden, gain, shift, 1e-6) @ head.T + bias
    rank = (z > z[..., true : true + 1]).sum(-1)
    params = {"true_class": true, "width": width, "ln_eps": 1e-6}
    inputs = {"hidden": hidden, "ln_weight": gain, "ln_bias": shift, "head_weight": head, "head_bias": bias}
    outputs = {
        "rank": rank,
        "true_logit": z[..., true],
        "top5": np.argsort(-z, -1)[..., :5],
        "change_rate": (z[1:, :, 1:, true] > z[:-1, :, 1:, true]).mean((1, 2)),
        "identifiability": 1 - rank / classes,
    }
    golden.case("one", params, inputs, outputs)
    yield golden
    golden = Golden(
        "vit_cls",
        "attention_perturbation",
        "patch rows: the identity, or their class column 0 without renormalising",
    )
    for mode in ("self_only", "no_cls"):
        batch, tokens, width, heads = 2, 7, 12, 3
        x, qkv, bias = (
            normal(rng, batch, tokens, width),
            normal(rng, 3 * width, width, scale=0.4),
            normal(rng, 3 * width),
        )
        proj, shift = normal(rng, width, width, scale=0.4), normal(rng, width)
        attention, v = projected(x, qkv, bias, heads)
        if mode == "self_only":
            attention[:, :, 1:] = np.eye(tokens)[1:]
        else:
            attention[:, :, 1:, 0] = 0.0
        golden.case(
            mode,
            {"batch": batch, "tokens": tokens, "heads": heads, "mode": mode},
            {"x": x},
            {"attn": attention, "out": joined(attention, v) @ proj.T + shift},
            {"qkv.weight": qkv, "qkv.bias": bias, "proj.weight": proj, "proj.bias": shift},
        )
    yield golden
