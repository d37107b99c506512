"""What a benchmark is to the runner: items to ask about, the prompt of each, and a score for the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from regaze.errors import InputError
from regaze.toolkit.images import open_image


@dataclass(frozen=True)
class Item:
    """One question. `key` is unique within the benchmark; `source` says where it was read ("file:line")."""

    key: str
    split: str
    image: Path
    question: str
    label: str
    source: str = ""


class Benchmark(Protocol):
    """Anything with items, prompts and a score can be run."""

    name: str

    @property
    def items(self) -> Sequence[Item]:
        """Every question, in the order in which it is asked."""

    def prompt(self, item: Item) -> str:
        """The text put to the model for `item`."""

    def score(self, answers: Mapping[str, Sequence[str]], *, seed: int) -> dict[str, Any]:
        """Figures per split and scorer; `answers` maps "plain" and "edited" to one answer per item."""

    def describe(self) -> dict[str, Any]:
        """Where the questions came from, for the results file (plain JSON values)."""


def check_image(item: Item) -> None:
    """Decode the item's image once.

    Raises:
        InputError: the file is missing or cannot be decoded; names the file and the line that asked for it.
    """
    try:
        open_image(item.image)
    except InputError as error:
        asked = f" (asked for by {item.source})" if item.source else ""
        raise InputError(f"{error}{asked}") from error
