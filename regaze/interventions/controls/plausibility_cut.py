"""The plausibility cut of contrastive decoding by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from regaze.interventions.base import Intervention
from regaze.interventions.controls.base import Control
from regaze.interventions.parameters import Fraction
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination


@dataclass(frozen=True)
class PlausibilityCut(Control, Intervention):
    """Exclude the tokens that are less likely than `beta` times the likeliest.

    Source: Yin et al., "The Mirage of Performance Gains" (arXiv:2504.10020): a cut makes sampling nearly
    greedy, which is what sampled contrastive decoding gains from. Greedy answers stay as they are.
    """

    name: ClassVar[str] = "plausibility-cut"
    summary: ClassVar[str] = "exclude unlikely tokens, without any contrast"
    source: ClassVar[str] = "arXiv:2504.10020"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "one forward"
    release: ClassVar[str] = "ustc-hyin/cd_rethink, Apache-2.0. Runs a second, identical forward."

    beta: Fraction = field(
        default=0.2, metadata={"help": "exclude tokens less likely than beta times the likeliest (0: none)"}
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def is_identity(self) -> bool:
        return self.beta == 0.0

    def acts_under(self, options: Mapping[str, Any]) -> bool:
        return samples_or_searches(options)

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        return None if self.is_identity else LogitsCombination(plausibility=self.beta)


def samples_or_searches(options: Mapping[str, Any]) -> bool:
    """Whether answers depend on more than which token is the likeliest, by arguments of `generate`."""
    return bool(options.get("do_sample")) or (options.get("num_beams") or 1) > 1
