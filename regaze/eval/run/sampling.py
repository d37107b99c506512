"""Sampled answers that depend on their own seed only.

`generate(do_sample=True)` draws from one random stream for the whole batch, so an answer changes with the
batch size, with the other rows, and when a run is resumed. Here every answer has its own stream: Gumbel noise
is added to the log-probabilities, and the argmax of the sum is a sample from the distribution (Gumbel 1954,
the "Gumbel-max trick").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from regaze.errors import BadParameterError

#: In the order of transformers.
_WARPERS: dict[str, Any] = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
}


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise to scores [B, V], to row b from a generator seeded by `seeds[b]`."""

    def __init__(self, seeds: Sequence[int]):
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if len(scores) != len(self._generators):
            raise BadParameterError(
                f"{len(self._generators)} answers are drawn, but generate asks for {len(scores)} tokens: "
                "sampling goes neither with beams nor with several returned sequences"
            )
        draws = [torch.rand(scores.shape[1], generator=generator) for generator in self._generators]
        uniform = torch.stack(draws).clamp_min(torch.finfo(torch.float32).tiny)
        return scores.float() - torch.log(-torch.log(uniform)).to(scores.device)


def sampling_options(options: Mapping[str, Any], keys: Sequence[str], seed: int) -> dict[str, Any]:
    """Options of a greedy `generate` whose answers are samples, row b from the stream of `keys[b]`.

    Args:
        options: of `generate` with do_sample; temperature, top_k, top_p and the like are taken out.
        keys: hexadecimal keys of the requests.

    Raises:
        BadParameterError: a temperature of 0 or less, or another value that transformers refuses.
    """
    rest = {name: value for name, value in options.items() if name not in _WARPERS}
    if rest.get("top_h") is not None:
        raise BadParameterError("sampling: top_h is not supported here; use top_p or min_p")
    try:
        warpers = [make(options[name]) for name, make in _WARPERS.items() if options.get(name) is not None]
    except ValueError as error:
        raise BadParameterError(f"sampling: {error}") from error
    seeds = [(int(key[:15], 16) + seed) % 2**63 for key in keys]
    return {
        **rest,
        "do_sample": False,
        "logits_processor": LogitsProcessorList([*warpers, GumbelNoise(seeds)]),
    }
