"""What contrastive decoding methods share: a worse context of the prompt, and logits that avoid it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.interventions.base import Intervention
from regaze.interventions.parameters import Fraction
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.token_map import Role

#: Name of the branch that `without_image` makes; methods that use it share it.
WITHOUT_IMAGE = "without image"


@dataclass(frozen=True)
class Contrastive(Intervention):
    """Base of methods that decode away from a negative branch, a context in which the model sees less.

    scores = (1 + alpha) logits - alpha negative logits, and -inf where the user's own logits are more than
    ln(1 / beta) below their maximum. `alpha = 0` switches the method off, the cut included.

    Class attributes:
        needs_image: prompts without an image are left alone, also within a batch that has some.
    """

    needs_image: ClassVar[bool] = True

    alpha: NonNegativeFloat = field(
        default=1.0, metadata={"help": "how far to move away from the negative branch (0: off)"}
    )
    beta: Fraction = field(
        default=0.1, metadata={"help": "cut tokens less likely than beta times the likeliest (0: none)"}
    )

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0.0

    @property
    def branch(self) -> str:
        """Name of the negative branch: its content follows from these parameters alone."""
        parameters = self.to_dict().items()
        return " ".join(f"{key}={value!r}" for key, value in parameters if key not in ("alpha", "beta"))

    def negative(self, context: Context) -> Branch:
        """The negative branch of the prompts; called once per prompt, in `branches`."""
        raise NotImplementedError

    def branches(self, context: Context) -> Mapping[str, Branch]:
        if self.is_identity or (self.needs_image and not has_image(context).any()):
            return {}
        state = context.state(self)
        state["branch"], state["where"] = self.branch, rows_with_image(context) if self.needs_image else None
        return {self.branch: self.negative(context)}

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state = context.state(self)
        if "branch" not in state:
            return None
        logits, negative = context.logits(), context.logits(state["branch"])
        return away_from(logits, negative, self.alpha, self.beta, state["where"])


def away_from(
    logits: Tensor, negative: Tensor, alpha: float, beta: float, where: Tensor | None = None
) -> LogitsCombination:
    """(1 + alpha) logits - alpha negative, [B, T, V], cut at `beta`; rows outside `where` [B, 1, 1] stay."""
    if where is None:
        return LogitsCombination(1 + alpha, [(-alpha, negative)], plausibility=beta)
    weight = alpha * where.to(logits.device)
    return LogitsCombination(
        1 + weight, [(-weight, negative)], plausibility=beta, plausibility_logits=cut_where(logits, where)
    )


def cut_where(logits: Tensor, where: Tensor | None) -> Tensor | None:
    """The logits that a cut reads: constant outside `where` [B, 1, 1], so that nothing is cut there."""
    return None if where is None else logits.masked_fill(~where.to(logits.device), 0.0)


def has_image(context: Context) -> Tensor:
    """[B] bool on the CPU, which of the user's prompts have an image."""
    return context.tokens.mask(Role.IMAGE)[: context.user_batch].any(1)


def rows_with_image(context: Context) -> Tensor | None:
    """[B, 1, 1] bool, which of the user's prompts have an image; None: all of them."""
    found = has_image(context)
    return None if bool(found.all()) else found[:, None, None].to(context.device)
