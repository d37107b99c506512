"""A method whose code fails inside of a forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from regaze.interventions import Intervention
from regaze.kernels import AttentionEdit, StatsRequest

#: In the place of the built-in methods' own modules.
PATH = "breaking:Breaking"


@dataclass(frozen=True)
class Breaking(Intervention):
    name: ClassVar[str] = "breaking"
    prompt_needs = ""

    where: str = "edit"
    step: int = 2

    @property
    def shares_prefix(self) -> Any:
        return "plain"

    def on_step(self, context: Any, input_ids: Any) -> None:
        self._reach("on_step", context.step)

    def edit(self, layer: int, step: int, context: Any) -> AttentionEdit | None:
        self._reach("edit", step)
        return StatsRequest(lse=True).as_edit if step and layer == 1 else None

    def on_stats(self, layer: int, stats: Any, context: Any) -> None:
        self._reach("on_stats", context.step)

    def _reach(self, where: str, step: int) -> None:
        if (where, step) == (self.where, self.step):
            raise ZeroDivisionError("a mistake of a method")
