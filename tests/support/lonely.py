"""A method whose code fails on the second of the workers that share a layer's heads, and on no other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.interventions import Intervention
from regaze.kernels import AttentionEdit, Channels, StatsRequest
from regaze.toolkit.model.logits import LogitsCombination

#: The places of its code.
PLACES = ("prepare", "on_step", "edit", "policy", "on_stats", "combine")


def announce(folder: Path) -> None:
    """Make a package of it in a folder, which announces it to all processes that import from there."""
    package = folder / "lonely-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: lonely\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[regaze.interventions]\nlonely = lonely:Lonely\n")


@dataclass(frozen=True)
class Halving:
    """Halves all masses. Workers gather those of all heads for it."""

    method: Lonely
    step: int
    channels: int = 1

    def __call__(self, masses: Tensor) -> Tensor:
        self.method.reach("policy", self.step)
        return torch.full_like(masses, 0.5)


@dataclass(frozen=True)
class Lonely(Intervention):
    name: ClassVar[str] = "lonely"
    prompt_needs = ""

    where: str = "edit"
    step: int = 2

    @property
    def shares_prefix(self) -> Any:
        return "plain"

    def prepare(self, context: Any) -> None:
        self.reach("prepare", self.step)

    def on_step(self, context: Any, input_ids: Any) -> None:
        self.reach("on_step", context.step)

    def edit(self, layer: int, step: int, context: Any) -> AttentionEdit | None:
        if not step:
            return None
        if layer == 1:
            self.reach("edit", step)
        if layer == 2:
            return StatsRequest(lse=True, entropy=True).as_edit
        groups = torch.zeros(1, context.prompt_length, dtype=torch.uint8)
        return AttentionEdit(channels=Channels(groups, 1), policy=Halving(self, step))

    def on_stats(self, layer: int, stats: Any, context: Any) -> None:
        self.reach("on_stats", context.step)

    def combine_logits(self, context: Any) -> LogitsCombination | None:
        self.reach("combine", context.step)
        return None

    def reach(self, where: str, step: int) -> None:
        """Fail, where that is the place and the worker is the second."""
        if (where, step) == (self.where, self.step) and _is_second():
            raise ZeroDivisionError("a mistake of a method")


def _is_second() -> bool:
    from vllm.distributed import parallel_state

    return parallel_state.model_parallel_is_initialized() and parallel_state.get_tp_group().rank_in_group == 1
