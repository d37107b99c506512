"""How much each head copies: the retrieval scores of one trial, from the strongest column of each row.

Source: Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality" (arXiv:2404.15574),
section 2, and its release `nightdessert/Retrieval_Head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.errors import ShapeError


class Copied(NamedTuple):
    """What each head copied from the needle in one answer.

    A head copies at a step when its strongest column lies in the needle and holds the token that the model
    emits at that step.

    Attributes:
        kinds: [layers, Hq] int64, number of different tokens copied.
        steps: [layers, Hq] int64, number of steps that copied.
        needle_kinds, needle_length: number of different tokens, and of all tokens, of the needle.
    """

    kinds: Tensor
    steps: Tensor
    needle_kinds: int
    needle_length: int

    @property
    def paper(self) -> Tensor:
        """[layers, Hq] float64 in 0..1: the share of the needle's different tokens that the head copied."""
        return self.kinds.double() / self.needle_kinds

    @property
    def released(self) -> Tensor:
        """[layers, Hq] float64: copying steps per needle token, as the released code counts; can exceed 1."""
        return self.steps.double() / self.needle_length


def count_copies(
    columns: Tensor, output: Sequence[int] | Tensor, prompt: Sequence[int] | Tensor, span: tuple[int, int]
) -> Copied:
    """What the heads copied while a model emitted `output`.

    Args:
        columns: [M, layers, Hq] int64, strongest key column of the row that predicts each emitted token;
            columns from len(prompt) on are generated tokens.
        output: [M] token ids emitted. prompt: [P] token ids of the whole prompt.
        span: (start, end) of the needle's tokens in `prompt`.

    Raises:
        ShapeError: counts that differ, or a span that is not inside the prompt.
    """
    tokens, emitted = torch.as_tensor(prompt), torch.as_tensor(output)
    start, end = span
    if columns.dim() != 3 or emitted.shape != columns.shape[:1]:
        raise ShapeError(
            f"columns must be [M, layers, Hq] and output [M], got {list(columns.shape)} "
            f"and {list(emitted.shape)}"
        )
    if not 0 <= start < end <= len(tokens):
        raise ShapeError(f"the needle {span} is not a span of the prompt's {len(tokens)} tokens")
    kinds, kind_of = tokens[start:end].unique(return_inverse=True)
    place = (columns - start).clamp(0, end - start - 1)
    attended = tokens[start:end][place]
    copies = (columns >= start) & (columns < end) & (attended == emitted[:, None, None])
    seen = F.one_hot(kind_of[place], len(kinds)).bool() & copies[..., None]
    return Copied(seen.any(0).sum(-1), copies.sum(0), len(kinds), end - start)


def needle_span(
    prompt: Sequence[int], needle: Sequence[int], *, as_released: bool = False
) -> tuple[int, int] | None:
    """Where the tokens of a needle lie in a prompt that was built elsewhere: (start, end), or None.

    With `as_released=True` it is the first window of the needle's length that shares more than 0.9 of its
    *set* of tokens. For needles of more than ten different tokens this can start too early.
    """
    size, needle_set = len(needle), set(needle)
    for start in range(len(prompt) - size + 1):
        window = prompt[start : start + size]
        found = (
            len(needle_set.intersection(window)) > 0.9 * len(needle_set)
            if as_released
            else list(window) == list(needle)
        )
        if found:
            return start, start + size
    return None
