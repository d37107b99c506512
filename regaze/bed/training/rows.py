"""Conversations as padded token rows, with images as embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regaze.bed.training.conversations import conversation
from regaze.demo.training.conversations import Turn
from regaze.demo.training.render import Rendered

IGNORED = -100  #: label of a position that is not trained on
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  #: SmolLM2's own
SYSTEM_SHARE = 0.1  #: of the conversations that open with it
_TYPICAL_WEIGHT = 7.0  # of all answers in a conversation


@dataclass(frozen=True)
class Rows:
    """A batch.

    Attributes:
        ids, labels: [B, L], padded on the right.
        weights: [B, L], of the labels' losses.
        length: [B].
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor
    length: Tensor


class Collator:
    """Turns scenes into conversations and these into rows, in the form of the chat template.

    A token of an answer of n tokens has the weight 1/sqrt(n), so that the many words of captions do not
    outweigh the answers yes and no.

    Args:
        tokenizer: the bed's.
        image_tokens: of one image.
        talk: scene, generator, noise -> turns.
    """

    def __init__(
        self, tokenizer: Any, image_tokens: int, talk: Callable[..., list[Turn]] = conversation
    ) -> None:
        self.image = tokenizer.image_token * image_tokens
        self.pad, self.talk = tokenizer.pad_token_id, talk
        self.encode = lru_cache(maxsize=50_000)(lambda text: tokenizer.encode(text, add_special_tokens=False))

    def row(
        self, scene: Rendered, rng: np.random.Generator, noise: float
    ) -> tuple[list[int], list[int], list[float]]:
        """One conversation as (ids, labels, weights)."""
        ids: list[int] = []
        labels: list[int] = []
        weights: list[float] = []
        opening = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n" if rng.random() < SYSTEM_SHARE else ""
        for number, turn in enumerate(self.talk(scene, rng, noise)):
            image = "" if number else f"{self.image}\n"
            prompt = self.encode(
                f"{opening}<|im_start|>user\n{image}{turn.question}<|im_end|>\n<|im_start|>assistant\n"
            )
            answer = self.encode(f"{turn.answer}<|im_end|>")
            ids += [*prompt, *answer]
            labels += [IGNORED] * len(prompt) + answer
            weights += [0.0] * len(prompt) + [len(answer) ** -0.5 / _TYPICAL_WEIGHT] * len(answer)
            opening = "\n"
        return ids, labels, weights

    def rows(self, scenes: Sequence[tuple[int, Rendered]], seed: int, noise: float) -> list[tuple[Any, ...]]:
        """The rows of (number, scene), the shortest first, each with its scene."""
        rows = []
        for number, scene in scenes:
            rows.append((*self.row(scene, np.random.default_rng([seed, 1_000, number]), noise), scene))
        return sorted(rows, key=lambda row: len(row[0]))

    def pad_rows(self, rows: Sequence[tuple[Any, ...]]) -> Rows:
        """Rows as one batch."""
        longest = max(len(ids) for ids, *_ in rows)
        ids = torch.full((len(rows), longest), self.pad)
        labels = torch.full((len(rows), longest), IGNORED)
        weights = torch.zeros(len(rows), longest)
        for i, (row_ids, row_labels, row_weights, _) in enumerate(rows):
            for whole, row in ((ids, row_ids), (labels, row_labels), (weights, row_weights)):
                whole[i, : len(row)] = torch.tensor(row)
        return Rows(ids, labels, weights / len(rows), torch.tensor([len(row[0]) for row in rows]))
