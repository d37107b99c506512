"""What methods of contrastive decoding share: a negative branch, and logits that move away from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls.plausibility_cut import PlausibilityCut
from regaze.interventions.parameters import Fraction
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.token_map import Role

#: Name of the branch that `without_image` makes; methods that use it share it.
WITHOUT_IMAGE = "without image"


@dataclass(frozen=True)
class Contrastive(Intervention):
    """Base of methods that contrast the user's logits with a negative branch, a context that shows less.

    scores = (1 + alpha) logits - alpha negative logits, and -inf where the user's own logits are more than
    ln(1 / beta) below their maximum, the plausibility constraint. With `alpha = 0` the constraint acts
    alone, without a branch; `alpha = beta = 0` switches the method off.

    Class attributes:
        needs_image: leave prompts without an image unchanged, also within a batch that has some.
    """

    needs_image: ClassVar[bool] = True

    alpha: NonNegativeFloat = field(
        default=1.0, metadata={"help": "strength of the contrast with the negative branch (0: none)"}
    )
    beta: Fraction = field(
        default=0.1, metadata={"help": "exclude tokens less likely than beta times the likeliest (0: none)"}
    )

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0.0 and self.beta == 0.0

    def controls(self) -> Sequence[Method]:
        return (PlausibilityCut(self.beta),) if self.alpha and self.beta else ()

    @property
    def branch(self) -> str:
        """Name of the negative branch; its content depends on these parameters alone."""
        parameters = self.to_dict().items()
        return " ".join(f"{key}={value!r}" for key, value in parameters if key not in ("alpha", "beta"))

    def negative(self, context: Context) -> Branch:
        """The negative branch of the prompts; called once per prompt, in `branches`."""
        raise NotImplementedError

    def branches(self, context: Context) -> Mapping[str, Branch]:
        if self.is_identity or (self.needs_image and not has_image(context).any()):
            return {}
        state = context.state(self)
        state["where"] = rows_with_image(context) if self.needs_image else None
        if self.alpha == 0.0:  # the constraint alone needs no branch
            return {}
        state["branch"] = self.branch
        return {self.branch: self.negative(context)}

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state, logits = context.state(self), context.logits()
        if "where" not in state:
            return None
        where = state["where"]
        if "branch" not in state:
            constrained = logits_to_constrain(logits, where)
            return LogitsCombination(plausibility=self.beta, plausibility_logits=constrained)
        return self.combined(logits, context.logits(state["branch"]), where)

    def combined(self, logits: Tensor, other: Tensor, where: Tensor | None) -> LogitsCombination:
        """How the logits of the branch act on the user's, both [B, T, V], in the rows `where` [B, 1, 1]."""
        return contrast_logits(logits, other, self.alpha, self.beta, where)


def contrast_logits(
    logits: Tensor, negative: Tensor, alpha: float, beta: float, where: Tensor | None = None
) -> LogitsCombination:
    """(1 + alpha) logits - alpha negative, [B, T, V], with the plausibility constraint `beta`.

    Rows outside `where` [B, 1, 1] are left unchanged; None: there are none.
    """
    if where is None:
        return LogitsCombination(1 + alpha, [(-alpha, negative)], plausibility=beta)
    weight = alpha * where.to(logits.device)
    return LogitsCombination(
        1 + weight,
        [(-weight, negative)],
        plausibility=beta,
        plausibility_logits=logits_to_constrain(logits, where),
    )


def add_logits(
    logits: Tensor, other: Tensor, alpha: float, beta: float, where: Tensor | None = None
) -> LogitsCombination:
    """As `contrast_logits`, logits + alpha other."""
    weight = alpha if where is None else alpha * where.to(logits.device)
    constrained = logits_to_constrain(logits, where)
    return LogitsCombination(1.0, [(weight, other)], plausibility=beta, plausibility_logits=constrained)


def gated_logits(
    logits: Tensor,
    other: Tensor,
    agree: Tensor,
    strengths: tuple[float, float],
    beta: float,
    where: Tensor | None = None,
) -> LogitsCombination:
    """As `add_logits` where `agree` [B, T, 1] is true, as `contrast_logits` elsewhere.

    Args:
        strengths: alpha of the sum and of the contrast.
    """
    add, contrast = strengths
    main, weight = torch.where(agree, 1.0, 1.0 + contrast), torch.where(agree, add, -contrast)
    if where is not None:
        where = where.to(logits.device)
        main, weight = torch.where(where, main, 1.0), weight * where
    constrained = logits_to_constrain(logits, where)
    return LogitsCombination(main, [(weight, other)], plausibility=beta, plausibility_logits=constrained)


def guide_logits(
    logits: Tensor, other: Tensor, gamma: float, beta: float, where: Tensor | None = None
) -> LogitsCombination:
    """gamma (l - l_other) + l_other on log-probabilities of [B, T, V], with the plausibility constraint.

    The constraint leaves rows outside `where` [B, 1, 1] alone; None: there are none.
    """
    return LogitsCombination(
        gamma,
        [(1.0 - gamma, other)],
        log_softmax=True,
        plausibility=beta,
        plausibility_logits=logits_to_constrain(logits, where),
    )


def logits_to_constrain(logits: Tensor, where: Tensor | None) -> Tensor | None:
    """Logits for the plausibility constraint: constant, so that it excludes nothing, outside `where`."""
    return None if where is None else logits.masked_fill(~where.to(logits.device), 0.0)


def has_image(context: Context) -> Tensor:
    """[B] bool on the CPU, which of the user's prompts have an image."""
    return context.tokens.mask(Role.IMAGE)[: context.user_batch].any(1)


def rows_with_image(context: Context) -> Tensor | None:
    """[B, 1, 1] bool, which of the user's prompts have an image; None: all of them."""
    found = has_image(context)
    return None if bool(found.all()) else found[:, None, None].to(context.device)
