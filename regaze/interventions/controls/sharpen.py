"""Sharpen: what adding logits does when they are the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import NonNegativeFloat

from regaze.interventions.base import Intervention
from regaze.interventions.controls.base import Control
from regaze.interventions.controls.plausibility_cut import samples_or_searches
from regaze.interventions.parameters import Fraction
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination


@dataclass(frozen=True)
class Sharpen(Control, Intervention):
    """Multiply the logits by 1 + alpha, and exclude unlikely tokens.

    Methods that add alpha times other logits do this where the others agree: they sample at a temperature of
    1 / (1 + alpha). Greedy answers stay as they are.
    """

    name: ClassVar[str] = "sharpen"
    summary: ClassVar[str] = "a lower temperature, without any other logits"
    source: ClassVar[str] = "ours"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "one forward"

    alpha: NonNegativeFloat = field(default=1.0, metadata={"help": "the logits are multiplied by 1 + alpha"})
    beta: Fraction = field(
        default=0.0, metadata={"help": "exclude tokens less likely than beta times the likeliest (0: none)"}
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0.0 and self.beta == 0.0

    def acts_under(self, options: Mapping[str, Any]) -> bool:
        return samples_or_searches(options)

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        return None if self.is_identity else LogitsCombination(1.0 + self.alpha, plausibility=self.beta)
