"""EViT: blocks that keep the tokens which the class token looks at, and fuse the others."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from recipes.base import Array, Golden, normal, probabilities
from recipes.vit import joined, layer_norm, projected

EPS = 1e-6


def shrink(x: Array, scores: Array, keep: int, fuse: bool) -> tuple[Array, Array]:
    """Class token, the kept in descending order of their scores, and the weighted sum of the others."""
    order = np.argsort(-scores, 1, kind="stable")
    kept, dropped = order[:, :keep], np.sort(order[:, keep:], 1)
    patches = x[:, 1:]
    parts = [x[:, :1], np.take_along_axis(patches, kept[..., None], 1)]
    if fuse and dropped.shape[1]:
        rest = np.take_along_axis(patches, dropped[..., None], 1)
        parts.append((np.take_along_axis(scores, dropped, 1)[..., None] * rest).sum(1, keepdims=True))
    return np.concatenate(parts, 1), kept


def gelu(x: Array) -> Array:
    """With the error function."""
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def draw(rng: np.random.Generator, width: int, inner: int, prefix: str = "") -> dict[str, Array]:
    """Weights of a block."""
    shapes = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
    }
    weights = {}
    for norm in ("norm1", "norm2"):
        weights[f"{prefix}{norm}.weight"] = 1 + normal(rng, width, scale=0.1)
        weights[f"{prefix}{norm}.bias"] = normal(rng, width, scale=0.1)
    for name, shape in shapes.items():
        weights[f"{prefix}{name}.weight"] = normal(rng, *shape, scale=0.4)
        weights[f"{prefix}{name}.bias"] = normal(rng, shape[0], scale=0.2)
    return weights


def block(
    x: Array, weights: dict[str, Array], prefix: str, heads: int, rate: float, fuse: bool
) -> tuple[Array, Array, Array]:
    """What leaves a block, which tokens stay, and how the class token looked at them."""

    def of(name: str) -> Array:
        return weights[prefix + name]

    h = layer_norm(x, of("norm1.weight"), of("norm1.bias"), EPS)
    attention, v = projected(h, of("attn.qkv.weight"), of("attn.qkv.bias"), heads)
    x = x + joined(attention, v) @ of("attn.proj.weight").T + of("attn.proj.bias")
    scores = attention[:, :, 0, 1:].mean(1)
    kept = np.zeros((len(x), 0), np.int64)
    if rate < 1:
        x, kept = shrink(x, scores, math.ceil(rate * (x.shape[1] - 1)), fuse)
    h = layer_norm(x, of("norm2.weight"), of("norm2.bias"), EPS)
    inner = gelu(h @ of("mlp.fc1.weight").T + of("mlp.fc1.bias"))
    return x + inner @ of("mlp.fc2.weight").T + of("mlp.fc2.bias"), kept, scores


def keep_fuse() -> Golden:
    """The shrinking alone."""
    rng = np.random.default_rng(8)
    golden = Golden(
        "evit", "keep_fuse", "keep ceil(rate (N - 1)) in descending order; fused = sum of score token"
    )
    for name, batch, tokens, width, rate, fuse in (
        ("fused", 2, 14, 9, 0.5, True), ("dropped", 1, 21, 8, 0.7, False), ("few", 3, 11, 6, 0.3, True)
    ):  # fmt: skip
        x, scores = normal(rng, batch, tokens, width), probabilities(rng, batch, tokens)[:, 1:]
        shrunk, kept = shrink(x, scores, math.ceil(rate * (tokens - 1)), fuse)
        inputs = {"after_attention": x, "cls_attn": scores}
        golden.case(name, {"fuse": fuse}, inputs, {"idx": kept, "after_shrink": shrunk})
    return golden


def blocks() -> Golden:
    """One block."""
    rng = np.random.default_rng(9)
    golden = Golden("evit", "block", "attention, residual, shrinking, MLP")
    for name, batch, tokens, width, heads, rate, fuse in (
        ("fused", 2, 15, 12, 3, 0.6, True),
        ("dropped", 1, 18, 16, 2, 0.5, False),
        ("narrow", 2, 12, 8, 4, 0.8, True),
    ):
        weights = draw(rng, width, 2 * width)
        x = normal(rng, batch, tokens, width)
        out, kept, scores = block(x, weights, "", heads, rate, fuse)
        params = {
            "width": width,
            "heads": heads,
            "mlp_ratio": 2.0,
            "ln_eps": EPS,
            "keep_rate": rate,
            "fuse": fuse,
        }
        golden.case(name, params, {"x": x}, {"out": out, "idx": kept, "cls_attn": scores}, weights)
    return golden


def model() -> Golden:
    """A classifier of three blocks, two of which drop tokens."""
    rng = np.random.default_rng(10)
    golden = Golden("evit", "model", "patches row by row, class token, positions, blocks, norm, head")
    size, patch, width, heads, classes, rates = 20, 4, 12, 3, 6, [1, 0.7, 0.7]
    grid = size // patch
    weights = {
        "cls_token": normal(rng, 1, 1, width),
        "pos_embed": normal(rng, 1, 1 + grid * grid, width, scale=0.5),
        "patch_embed.proj.weight": normal(rng, width, 3, patch, patch, scale=0.2),
        "patch_embed.proj.bias": normal(rng, width, scale=0.2),
        "norm.weight": 1 + normal(rng, width, scale=0.1),
        "norm.bias": normal(rng, width, scale=0.1),
        "head.weight": normal(rng, classes, width),
        "head.bias": normal(rng, classes),
    }
    for number in range(len(rates)):
        weights |= draw(rng, width, 2 * width, f"blocks.{number}.")
    pixels = normal(rng, 2, 3, size, size)
    cells = (
        pixels.reshape(2, 3, grid, patch, grid, patch).transpose(0, 2, 4, 1, 3, 5).reshape(2, grid * grid, -1)
    )
    x = cells @ weights["patch_embed.proj.weight"].reshape(width, -1).T + weights["patch_embed.proj.bias"]
    x = np.concatenate([np.broadcast_to(weights["cls_token"], (2, 1, width)), x], 1) + weights["pos_embed"]
    outputs, counts = {}, []
    for number, rate in enumerate(rates):
        x, kept, _ = block(x, weights, f"blocks.{number}.", heads, rate, True)
        counts.append(x.shape[1] - 1)
        if rate < 1:
            outputs[f"idx{len(outputs)}"] = kept
    final = layer_norm(x, weights["norm.weight"], weights["norm.bias"], EPS)[:, 0]
    outputs |= {
        "logits": final @ weights["head.weight"].T + weights["head.bias"],
        "tokens_per_block": np.array(counts),
    }
    params = {
        "width": width,
        "heads": heads,
        "mlp_ratio": 2.0,
        "ln_eps": EPS,
        "image": size,
        "patch": patch,
        "classes": classes,
        "depth": len(rates),
        "keep_rates": rates,
        "fuse": True,
    }
    golden.case("small", params, {"pixels": pixels}, outputs, weights)
    return golden


def schedule() -> Golden:
    """The keep rate over the training."""
    golden = Golden("evit", "schedule", "1 up to the warm-up's end, then half a cosine down to the base rate")
    for name, base, warm, total, each in (("a", 0.7, 2, 12, 5), ("b", 0.4, 0, 7, 9)):
        iterations = np.array(
            [0, warm * each, warm * each + 1, (warm + total) * each // 2, total * each - 1, total * each]
        )
        done = np.clip((iterations - warm * each) / ((total - warm) * each), 0, 1)
        rates = base + (1 - base) * (1 + np.cos(np.pi * done)) / 2
        params = {
            "base_keep_rate": base,
            "warmup_epochs": warm,
            "total_epochs": total,
            "iters_per_epoch": each,
        }
        golden.case(name, params, {"iteration": iterations}, {"keep_rate": rates})
    return golden


def goldens() -> Iterator[Golden]:
    """All four."""
    yield from (keep_fuse(), blocks(), model(), schedule())
