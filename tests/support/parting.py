"""A method whose code fails in a second context, or where logits are combined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from regaze.interventions import Intervention
from regaze.kernels import AttentionEdit
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch

#: In the place of the built-in methods' own modules.
PATH = "parting:Parting"


@dataclass(frozen=True)
class Parting(Intervention):
    name: ClassVar[str] = "parting"

    where: str = "combine"
    step: int = 2

    def branches(self, context: Any) -> Mapping[str, Branch]:
        return {"the same": Branch()}

    def prepare(self, context: Any) -> None:
        context.state(self)["second"] = context.rows("the same") == slice(0, 1)

    def edit(self, layer: int, step: int, context: Any) -> AttentionEdit | None:
        if context.state(self)["second"]:
            self._reach("second", step)
        return None

    def combine_logits(self, context: Any) -> LogitsCombination | None:
        self._reach("combine", context.step)
        return LogitsCombination(2.0, [(-1.0, context.logits("the same"))])

    def _reach(self, where: str, step: int) -> None:
        if (where, step) == (self.where, self.step):
            raise ZeroDivisionError("a mistake of a method")
