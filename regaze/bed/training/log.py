"""Curves of training as CSV."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

EVERY = 20  #: steps
COLUMNS = ("stage", "step", "loss", "accuracy", "tokens", "cpu_seconds", "seconds", "divergence")


class Log:
    """Rows of stage, step, loss, accuracy, tokens, seconds (of CPU, and of the clock while it trained), and
    divergence from SmolLM2 in its own words.

    A log that is there is gone on with.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, time.monotonic()
        if path.exists():
            with path.open(newline="") as file:
                self.started -= max((float(row["seconds"]) for row in csv.DictReader(file)), default=0.0)
        else:
            self._append([*COLUMNS])

    def write(
        self, stage: str, step: int, loss: float, accuracy: float, tokens: int, cpu: float,
        divergence: float = float("nan"),
    ) -> None:  # fmt: skip
        """Append one row."""
        wall = f"{time.monotonic() - self.started:.0f}"
        figures = [f"{loss:.4f}", f"{accuracy:.4f}", tokens, f"{cpu:.0f}", wall, f"{divergence:.4f}"]
        self._append([stage, step, *figures])

    def _append(self, row: list[Any]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row)
