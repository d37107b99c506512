"""The cost of answers as plain data: seconds, forwards, tokens, memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Cost:
    """The cost of some answers.

    Attributes:
        answers: number of answers.
        tokens: generated tokens, including those after the end of a row (a batch runs until its last row
            ends).
        seconds: wall-clock time.
        rows: rows of the batch times forwards of the language model: every context of every prompt counts.
            Forwards that only fill the cache of a shared prefix do not: whether a condition shares prefixes,
            and in how many pieces, says nothing about the method.
        prefill_tokens: positions of forwards over more than one token, padding included.
        peak_mib: highest memory in use, including the model: allocated on CUDA devices, resident elsewhere;
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
        """The sum of parts (fields of a cost, the fraction of it that counts), and their highest memory."""
        out = cls()
        for cost, fraction in parts:
            for name in ("answers", "tokens", "rows", "prefill_tokens"):
                setattr(out, name, getattr(out, name) + round(fraction * cost[name]))
            out.seconds += fraction * cost["seconds"]
            peaks = [peak for peak in (out.peak_mib, cost["peak_mib"]) if peak is not None]
            out.peak_mib = max(peaks, default=None)
        return out
