"""Measure what generation costs: counters and hooks that fill in a `Cost`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from regaze.eval.cost import Cost


class TokenCounter(StoppingCriteria):
    """Counts the tokens per row of the last generation; never stops it."""

    def __init__(self) -> None:
        self.count, self._length = 0, -1

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        length = input_ids.shape[1]
        self.count = self.count + 1 if length == self._length + 1 else 1
        self._length = length
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def measure_cost(gaze: Any) -> Iterator[Cost]:
    """The cost of the block, complete at its end except for `answers` and `tokens`."""
    cost, handle = Cost(), None
    model = getattr(gaze, "model", None)

    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = next(
            (t for t in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args) if t is not None), None
        )
        if inputs is not None:
            cost.rows += inputs.shape[0]
            cost.prefill_tokens += inputs.shape[0] * inputs.shape[1] if inputs.shape[1] > 1 else 0

    if isinstance(model, torch.nn.Module):
        handle = model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)  # type: ignore[operator]
    _reset_peak_memory()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        cost.peak_mib = _peak_memory()
        if handle is not None:
            handle.remove()


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or a container that forbids it: the peak is that of the process so far
        return


def _peak_memory() -> float | None:
    """In MiB; None where it cannot be measured."""
    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(d) for d in range(torch.cuda.device_count())) / 2**20
    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:")), None)
