"""Curves of training as CSV."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

EVERY = 20  #: steps


class Log:
    """Rows of stage, step, loss, accuracy, tokens, and seconds: of CPU, and of the clock in this go."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, time.monotonic()
        if not path.exists():
            self._append(["stage", "step", "loss", "accuracy", "tokens", "cpu_seconds", "seconds"])

    def write(self, stage: str, step: int, loss: float, accuracy: float, tokens: int, cpu: float) -> None:
        """Append one row."""
        wall = time.monotonic() - self.started
        self._append([stage, step, f"{loss:.4f}", f"{accuracy:.4f}", tokens, f"{cpu:.0f}", f"{wall:.0f}"])

    def _append(self, row: list[Any]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row)
