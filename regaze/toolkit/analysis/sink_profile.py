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


#: Short texts of several kinds; only their first token is measured.
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
    """Find the sink dimensions of a language model from the first token of plain texts.

    In each text and each layer of the middle third, the first token's |x_d| / RMS is compared with `tau`. The
    dimensions that exceed it in at least `agreement` of all (text, layer) pairs are returned, the strongest
    first.

    Args:
        model, processor: as for `regaze.wrap`.
        texts: plain texts; the tokenizer adds BOS if the model has one.
        tau: threshold; default the paper's 20, or 0.3125 * sqrt(D) for models too narrow for it (20 is this
            share of the bound at D = 4096).
        agreement: share of (text, layer) pairs. most: largest number of dimensions to return.

    Raises:
        BadParameterError: `tau` is at least sqrt(D), which no value can reach. InputError: no dimension
        exceeds it.
    """
    width, tokenizer = compat.text_config(model).hidden_size, getattr(processor, "tokenizer", processor)
    bound = math.sqrt(width)
    tau = tau if tau is not None else TAU if bound > 2 * TAU else 0.3125 * bound
    if tau >= bound:
        raise BadParameterError(
            f"tau={tau} cannot be reached: with {width} dimensions phi is at most {bound:.2f}"
        )
    values, layer = [], compat.decoder_layers(model)[0]
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
        states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        third = len(states) // 3
        middle = [compat.residual(layer, state, width) for state in states[third : 2 * third + 1]]
        first = torch.stack([state[0, 0].float() for state in middle])
        values.append(first.abs() / first.square().mean(-1, keepdim=True).add(1e-6).sqrt())
    ratio = torch.cat(values)  # [texts * layers, D]
    steady = (ratio > tau).float().mean(0) >= agreement
    if not steady.any():
        strongest = ratio.mean(0).max()
        raise InputError(
            f"no dimension of {type(model).__name__} exceeds tau={tau:.2f} at the first token in "
            f"{agreement:.0%} of the probes (the strongest averages {strongest:.2f}); lower tau, or the "
            "model forms no attention sinks"
        )
    order = torch.argsort(ratio.mean(0).masked_fill(~steady, -1.0), descending=True)
    return SinkProfile(tuple(int(d) for d in order[: min(most, int(steady.sum()))]), tau)
