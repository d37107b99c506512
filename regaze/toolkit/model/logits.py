"""Combining the logits of several contexts, before temperature and truncation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LogitsCombination:
    """main * logits + sum of coefficient * other logits, over the plausible tokens.

    Coefficients are numbers or tensors that broadcast to [B, T, V], such as [B, 1, 1]; logits are [B, T, V].
    The adaptive plausibility constraint is that of contrastive decoding (Li et al., arXiv:2210.15097,
    equation 3).

    Attributes:
        main: coefficient of the user's own logits.
        others: pairs of a coefficient and the logits of another context or layer.
        log_softmax: take log-probabilities of every term. The distribution is the same either way; the
            scores are what some sources give.
        plausibility: beta of the constraint; tokens less likely than beta times the most likely one get
            -inf. 0: no constraint.
        plausibility_logits: logits in which the constraint looks up how likely a token is; None: the user's
            own.
        allowed: [B, T, V] bool, tokens outside get -inf; None: all are allowed.
    """

    main: float | Tensor = 1.0
    others: Sequence[tuple[float | Tensor, Tensor]] = field(default_factory=tuple)
    log_softmax: bool = False
    plausibility: float = 0.0
    plausibility_logits: Tensor | None = None
    allowed: Tensor | None = None

    @property
    def cuts(self) -> bool:
        """Whether it may exclude tokens."""
        return self.plausibility > 0.0 or self.allowed is not None


def combine(logits: Tensor, combinations: Sequence[LogitsCombination]) -> Tensor:
    """Logits [B, T, V] under all combinations, in fp32.

    The order of several combinations does not matter: what each adds to the plain logits is summed, and a
    token must satisfy every plausibility constraint and be allowed by every combination.
    """
    plain = logits.float()
    combined = plain
    for combination in combinations:
        value = _terms(plain, combination.log_softmax) * combination.main
        for coefficient, other in combination.others:
            value = value + coefficient * _terms(other.float(), combination.log_softmax)
        combined = value if len(combinations) == 1 else combined + (value - plain)
    for combination in combinations:
        if combination.plausibility > 0.0:
            reference = combination.plausibility_logits
            reference = plain if reference is None else reference.float()
            threshold = reference.amax(-1, keepdim=True) + math.log(combination.plausibility)
            combined = combined.masked_fill(reference < threshold, -torch.inf)
        if combination.allowed is not None:
            combined = combined.masked_fill(~combination.allowed, -torch.inf)
    return combined


def _terms(logits: Tensor, log_softmax: bool) -> Tensor:
    return logits.log_softmax(-1) if log_softmax else logits
