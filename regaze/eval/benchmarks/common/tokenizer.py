"""What benchmarks that build prompts of a given length need of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[Any]:
        """Text to tokens."""

    def decode(self, tokens: Sequence[Any]) -> str:
        """Tokens to text."""
