"""What a row of the zoo is: a tiny random model of one family with its real processor class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One family under test.

    Attributes:
        name: transformers' `config.model_type`.
        build: makes a model (random weights of a fixed seed, fp32, eval mode, about 2 layers of width 32) and its
            processor (the family's own class, with a tiny tokenizer), the same each time.
        images: how many images a prompt may have; 0 for text models.
        refused: None, or a pattern of the error that regaze raises where a family cannot work.
        note: what a reader of docs/models.md should know, in a few words.
    """

    name: str
    build: Callable[[], tuple[Any, Any]]
    images: int = 2
    refused: str | None = None
    note: str = ""
