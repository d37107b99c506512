"""Combining the logits of several contexts, before temperature and truncation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LogitsCombination:
    """main * logits + sum of coefficient * other logits, among the tokens that a plausibility cut leaves.

    Coefficients are numbers or [B, 1, 1] tensors, logits are [B, T, V].

    Attributes:
        main: coefficient of the user's own logits.
        others: pairs of a coefficient and the logits of another context or layer.
        log_softmax: take log-probabilities of every term. The distribution is the same either way; the
            scores are what some sources give.
        cut: beta; tokens less likely than beta times the most likely one get -inf. 0: no cut.
        cut_on: logits the cut reads; None: the user's own.
    """

    main: float | Tensor = 1.0
    others: Sequence[tuple[float | Tensor, Tensor]] = field(default_factory=tuple)
    log_softmax: bool = False
    cut: float = 0.0
    cut_on: Tensor | None = None


def combine(logits: Tensor, combinations: Sequence[LogitsCombination]) -> Tensor:
    """Logits [B, T, V] under all combinations, in fp32.

    Several act together, in whatever order: what each adds to the plain logits is added up, and a token must
    pass every cut.
    """
    plain = logits.float()
    mixed = plain
    for combination in combinations:
        value = _normal(plain, combination.log_softmax) * combination.main
        for coefficient, other in combination.others:
            value = value + coefficient * _normal(other.float(), combination.log_softmax)
        mixed = value if len(combinations) == 1 else mixed + (value - plain)
    for combination in combinations:
        if combination.cut > 0.0:
            read = plain if combination.cut_on is None else combination.cut_on.float()
            least = read.amax(-1, keepdim=True) + math.log(combination.cut)
            mixed = mixed.masked_fill(read < least, -torch.inf)
    return mixed


def _normal(logits: Tensor, log_softmax: bool) -> Tensor:
    return logits.log_softmax(-1) if log_softmax else logits
