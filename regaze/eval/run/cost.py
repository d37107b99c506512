"""What answering costs: seconds, forwards, tokens of the prompts, memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


@dataclass
class Cost:
    """The cost of some answers.

    Attributes:
        answers: how many.
        tokens: generated, those after a row's end included (a batch goes on until its last row ends).
        seconds: on the clock.
        rows: rows of the batch times forwards of the language model: every context of every prompt counts.
        prefill_tokens: positions of forwards over more than one token, padding included.
        peak_mib: highest memory in use, the model included: allocated on CUDA devices, resident elsewhere;
            None where it cannot be measured.
    """

    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0
    rows: int = 0
    prefill_tokens: int = 0
    peak_mib: float | None = None

    @property
    def forwards_per_token(self) -> float | None:
        """1 for plain decoding; None where nothing was counted."""
        return self.rows / self.tokens if self.tokens and self.rows else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def total(cls, parts: Iterable[tuple[Mapping[str, Any], float]]) -> Cost:
        """The sum of (what was kept, share of it that counts), and the highest memory."""
        out = cls()
        for kept, share in parts:
            for name in ("answers", "tokens", "rows", "prefill_tokens"):
                setattr(out, name, getattr(out, name) + round(share * kept[name]))
            out.seconds += share * kept["seconds"]
            peaks = [peak for peak in (out.peak_mib, kept["peak_mib"]) if peak is not None]
            out.peak_mib = max(peaks, default=None)
        return out


class Steps(StoppingCriteria):
    """Stops nothing; counts the tokens of the last generation it was given to."""

    def __init__(self) -> None:
        self.count, self._length = 0, -1

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        length = input_ids.shape[1]
        self.count = self.count + 1 if length == self._length + 1 else 1
        self._length = length
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def measured(gaze: Any) -> Iterator[Cost]:
    """The cost of what runs in the block, filled in when it ends but for `answers` and `tokens`."""
    cost, handle = Cost(), None
    model = getattr(gaze, "model", None)

    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        fed = next(
            (t for t in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args) if t is not None), None
        )
        if fed is not None:
            cost.rows += fed.shape[0]
            cost.prefill_tokens += fed.shape[0] * fed.shape[1] if fed.shape[1] > 1 else 0

    if isinstance(model, torch.nn.Module):
        handle = model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)  # type: ignore[operator]
    _forget_peak()
    began = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - began
        cost.peak_mib = _peak()
        if handle is not None:
            handle.remove()


def _forget_peak() -> None:
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux, or a container that does not allow it: the peak is that of the process
        return


def _peak() -> float | None:
    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(d) for d in range(torch.cuda.device_count())) / 2**20
    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:")), None)
