"""Sink dimensions of base language models: published ones, and a search for those of other models.

Attention sinks are tokens with massive activations in a few fixed dimensions of their hidden states. The
dimensions belong to the base language model and survive multimodal tuning.

Sources: "See What You Are Told: Visual Attention Sink in Large Multimodal Models" (arXiv:2503.03321) for the
sink value, "Massive Activations in Large Language Models" (arXiv:2402.17762) for the phenomenon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regaze.errors import BadParameterError, InputError
from regaze.toolkit.model import compat

#: Threshold of the paper, for models of 3,584 dimensions and more; the sink value cannot exceed sqrt(D).
TAU = 20.0


@dataclass(frozen=True)
class SinkProfile:
    """Sink dimensions of a base language model and the threshold on the sink value."""

    dimensions: tuple[int, ...]
    tau: float = TAU


#: (model_type of the language model, hidden size, layers, smallest vocabulary, upper bound of the vocabulary)
#: -> sink dimensions. LLaMA-2, Qwen2 and InternLM2 from the VAR paper and release, the others from "Massive
#: Activations".
PUBLISHED: dict[tuple[str, int, int, int, int], SinkProfile] = {
    ("llama", 4096, 32, 32000, 33000): SinkProfile((1415, 2533)),  # LLaMA-2-7B, Vicuna-7B, LLaVA-1.5-7B
    ("llama", 5120, 40, 32000, 33000): SinkProfile((2100, 4743)),  # LLaMA-2-13B, LLaVA-1.5-13B
    ("qwen2_vl_text", 3584, 28, 0, 1 << 30): SinkProfile((458, 2570)),  # Qwen2-VL-7B
    ("internlm2", 4096, 32, 0, 1 << 30): SinkProfile((3584,)),  # InternVL2-8B
    ("mistral", 4096, 32, 32000, 33000): SinkProfile((2070,)),  # Mistral-7B
    ("llama", 4096, 32, 128000, 129000): SinkProfile((788, 1384, 4062)),  # LLaMA-3-8B
}


def published_sinks(config: Any) -> SinkProfile | None:
    """Sink dimensions from a language model's configuration (`sink_dimensions`, `sink_tau`), or published
    ones; None if there are neither.
    """
    own = getattr(config, "sink_dimensions", None)
    if own:
        return SinkProfile(tuple(own), float(getattr(config, "sink_tau", TAU)))
    for (kind, hidden, layers, low, high), profile in PUBLISHED.items():
        shape = (config.model_type, config.hidden_size, config.num_hidden_layers)
        if shape == (kind, hidden, layers) and low <= config.vocab_size < high:
            return profile
    return None


def sink_profile(
    config: Any, dimensions: Sequence[int] | None = None, tau: float | None = None
) -> SinkProfile:
    """The sink profile for a language model's configuration.

    Args:
        dimensions, tau: replace the published ones.

    Raises:
        BadParameterError: no dimensions are published or given, a dimension that does not exist, or a tau
        that no token can reach.
    """
    width, known = config.hidden_size, published_sinks(config)
    if dimensions is None and known is None:
        raise BadParameterError(
            f"the sink dimensions of this base model ({config.model_type}, {width} dimensions, "
            f"{config.num_hidden_layers} layers) are not published; find them with "
            "regaze.toolkit.analysis.sink_profile.find_sink_dimensions(model, processor) and "
            "pass them as sink_dimensions=..., tau=..."
        )
    profile = known
    if dimensions is not None:
        profile = SinkProfile(tuple(dimensions), TAU if known is None else known.tau)
    assert profile is not None
    outside = [d for d in profile.dimensions if not 0 <= d < width]
    if outside or not profile.dimensions:
        raise BadParameterError(f"sink_dimensions {outside or '()'} are not among 0..{width - 1}")
    tau = profile.tau if tau is None else tau
    if tau * tau >= width:
        raise BadParameterError(
            f"tau={tau} can never be reached: with {width} dimensions the sink value is at most "
            f"{width**0.5:.2f}; pass a smaller tau"
        )
    return SinkProfile(profile.dimensions, tau)


def sink_values(hidden: Tensor, dimensions: Sequence[int]) -> Tensor:
    """phi = max over the sink dimensions of |x_d| / RMS(x): [B, T, D] -> [B, T] fp32, at most sqrt(D).

    The RMS has no learned gain.
    """
    hidden = hidden.float()
    rms = hidden.square().mean(-1).add(1e-6).sqrt()
    sinks = torch.stack(
        [hidden[..., dimension] for dimension in dimensions]
    )  # a list would be copied to the device
    return sinks.abs().amax(0) / rms


#: Short texts of several kinds.
PROBES = (
    "The cat sat on the mat and looked out of the window.",
    "In 1969, two people walked on the moon for the first time.",
    "def add(a, b):\n    return a + b",
    "How do I cook rice? Wash it, add water, and wait.",
    "Water boils at 100 degrees Celsius at sea level.",
    'She said: "I will be there at noon." He was not so sure.',
    "Paris, Rome, Madrid and Berlin are capital cities.",
    "Once upon a time there was a king who had three daughters.",
)
#: Share of phi's bound sqrt(D) that a massive activation reaches: a tenth of the token's energy.
MASSIVE = 0.3125
#: Tokens whose |x_d| is at least this share of the first token's are sinks, too, such as full stops.
NEAR = 1 / 3
#: Share of the tokens after the first that may be sinks; a dimension with more is none of sinks.
SINKS_AMONG_OTHERS = 0.2


@torch.inference_mode()
def find_sink_dimensions(
    model: PreTrainedModel,
    processor: Any,
    *,
    texts: Sequence[str] = PROBES,
    tau: float | None = None,
    agreement: float = 0.9,
    most: int = 4,
) -> SinkProfile:
    """Find the sink dimensions of a language model, and a threshold that tells sinks from ordinary tokens.

    The first token is a sink in every model that has sinks. Its |x_d| and phi = |x_d| / RMS(x) are compared
    with those of ordinary tokens, in the layers of the middle third. A dimension is a sink dimension if, in
    half of the layers, hardly any other token comes near the first one's |x_d|, and its phi is massive
    (`MASSIVE`) and above that of all ordinary tokens. phi alone would not do: in some models one dimension
    is most of every token, and in narrow ones ordinary tokens reach high values. So the threshold is no
    constant either: it lies between ordinary tokens and first ones, at the paper's 20 where that is between
    them.

    Args:
        model, processor: as for `regaze.wrap`.
        texts: plain texts of several tokens each; the tokenizer adds BOS if the model has one.
        tau: threshold to use instead. The dimensions are then those that exceed it in `agreement` of all
            (text, layer) pairs.
        agreement: share of the texts. most: largest number of dimensions to return, the strongest first.

    Raises:
        BadParameterError: `tau` is at least sqrt(D), which no value can reach. InputError: the model forms
            no sinks, or no dimension exceeds `tau`.
    """
    width, tokenizer = compat.text_config(model).hidden_size, getattr(processor, "tokenizer", processor)
    bound = math.sqrt(width)
    if tau is not None and tau >= bound:
        raise BadParameterError(
            f"tau={tau} cannot be reached: with {width} dimensions phi is at most {bound:.2f}"
        )
    probes = _probe(model, tokenizer, texts, width)
    first = torch.stack([phi[0] for _, phi in probes])  # [texts, layers, D]
    name = type(model).__name__
    if tau is not None:
        steady = (first > tau).float().mean((0, 1)) >= agreement
        if not steady.any():
            raise InputError(
                f"no dimension of {name} exceeds tau={tau:.2f} at the first token in {agreement:.0%} of the "
                f"probes (the strongest averages {first.mean((0, 1)).max():.2f}); lower tau, or the model "
                "forms no attention sinks"
            )
        return SinkProfile(_strongest(first, steady, most), tau)
    low, high = first.quantile(1 - agreement, dim=0), _ordinary(probes)  # [layers, D]
    stands = (low >= MASSIVE * bound) & (low > high)
    steady = stands.float().mean(0) >= 0.5
    if not steady.any():
        raise InputError(
            f"no dimension of {name} is massive at the first token alone (the strongest averages "
            f"{first.mean((0, 1)).max():.2f}, {MASSIVE * bound:.2f} would be massive): the model forms no "
            "attention sinks; pass tau to accept less"
        )
    dimensions = _strongest(first, steady, most)
    layers, chosen = stands[:, list(dimensions)].all(1), list(dimensions)
    if not layers.any():  # each in its own layers: the strongest alone
        dimensions, layers, chosen = dimensions[:1], stands[:, dimensions[0]], chosen[:1]
    return SinkProfile(dimensions, _between(high[layers][:, chosen].amax(1), low[layers][:, chosen].amax(1)))


def _probe(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[str], width: int
) -> list[tuple[Tensor, Tensor]]:
    """Of each text |x_d| and phi in the layers of the middle third, both [tokens, layers, D]."""
    layer, probes = compat.decoder_layers(model)[0], []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
        states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        third = len(states) // 3
        middle = [compat.residual(layer, state, width)[0].float() for state in states[third : 2 * third + 1]]
        size = torch.stack(middle, 1).abs()
        probes.append((size, size / size.square().mean(-1, keepdim=True).add(1e-6).sqrt()))
    return probes


def _ordinary(probes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The highest phi of ordinary tokens, [layers, D]; infinite where too many are as large as the first."""
    near = torch.cat([size[1:] >= NEAR * size[0] for size, _ in probes])
    phi = torch.cat([phi[1:] for _, phi in probes])
    highest = phi.masked_fill(near, 0.0).amax(0)
    return highest.masked_fill(near.float().mean(0) > SINKS_AMONG_OTHERS, math.inf)


def _between(high: Tensor, low: Tensor) -> float:
    """A threshold between ordinary tokens' highest phi and first ones' lowest, both [layers]."""
    start, end = float(high.max()), float(low.median())
    if start >= end:  # layers differ more than tokens
        start = float(high.median())
    return TAU if start < TAU < end else math.sqrt(start * end)


def _strongest(first: Tensor, steady: Tensor, most: int) -> tuple[int, ...]:
    """The steady dimensions, the strongest first."""
    order = torch.argsort(first.mean((0, 1)).masked_fill(~steady, -1.0), descending=True)
    return tuple(int(dimension) for dimension in order[: min(most, int(steady.sum()))])
