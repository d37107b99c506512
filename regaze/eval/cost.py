"""What answers cost, as plain data: seconds, forwards, tokens, memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


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
