"""`Entry`: a tiny random model of one family with the real class of its processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One family under test.

    Attributes:
        name: transformers' `config.model_type`.
        build: makes a model (random weights of a fixed seed, fp32, eval mode, a few layers of width 32) and
            its processor (the family's own class, with a tiny tokenizer), the same each time.
        images: how many images a prompt may have; 0 for text models.
        refused: None, or a pattern of the error that regaze raises where a family cannot work.
        note: a few words for docs/reference/families.md.
        batch: whether transformers itself gives the same results for different prompts in a batch and alone.
        lacks: prompts that the family or its processor does not take: "none" (no image), "last" (image after
            the question), "turns" (several), "text" (a question whose words the processor does not keep); or
            "hidden": the model has several residual streams, so that hidden states cannot be read.
        sizes: (width, height) of the two images.
    """

    name: str
    build: Callable[[], tuple[Any, Any]]
    images: int = 2
    refused: str | None = None
    note: str = ""
    batch: bool = True
    lacks: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((56, 56), (84, 56))
