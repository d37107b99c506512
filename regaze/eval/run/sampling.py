"""Sampled answers that depend on their own seed alone.

`generate(do_sample=True)` draws from one stream for the whole batch, so that an answer changes with the batch
size, with its neighbours, and when a run is taken up again. Here every answer has a stream of its own: noise
from the Gumbel distribution is added to its log-probabilities, and the greedy choice among these is a draw
from the distribution (Gumbel 1954; the "Gumbel-max trick").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from regaze.errors import BadParameterError

_WARPERS: dict[str, Any] = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}


class OwnStreams(LogitsProcessor):
    """Adds Gumbel noise to scores [B, V], row b from a generator seeded by `seeds[b]`."""

    def __init__(self, seeds: Sequence[int]):
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if len(scores) != len(self._generators):
            raise BadParameterError(
                f"{len(self._generators)} answers are drawn, but generate asks for {len(scores)} tokens: "
                "sampling goes neither with beams nor with several returned sequences"
            )
        draws = [torch.rand(scores.shape[1], generator=own) for own in self._generators]
        uniform = torch.stack(draws).clamp_min(torch.finfo(torch.float32).tiny)
        return scores.float() - torch.log(-torch.log(uniform)).to(scores.device)


def sampler(options: Mapping[str, Any], keys: Sequence[str], seed: int) -> dict[str, Any]:
    """Options that draw answers as `options` (with do_sample) ask for, row b from the stream of `keys[b]`.

    Args:
        options: of `generate`; temperature, top_k, top_p and min_p are taken out of it.
        keys: hexadecimal keys of the requests.

    Raises:
        BadParameterError: a temperature that is not above 0, or another value that transformers refuses.
    """
    kept = {name: value for name, value in options.items() if name not in _WARPERS}
    try:
        warpers = [make(options[name]) for name, make in _WARPERS.items() if options.get(name) is not None]
    except ValueError as error:
        raise BadParameterError(f"sampling: {error}") from error
    seeds = [(int(key[:15], 16) + seed) % 2**63 for key in keys]
    return {
        **kept,
        "do_sample": False,
        "logits_processor": LogitsProcessorList([*warpers, OwnStreams(seeds)]),
    }
