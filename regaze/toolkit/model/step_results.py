"""`StepResults`: what layers measure in a decode step, kept at addresses that stay for a generation.

A captured graph goes on writing to the same memory while no Python of its layers runs. So operators of graphs
leave statistics here, and callbacks are handed copies when the forward has ended.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from regaze.kernels import Stats
from regaze.toolkit.model import compat


class Place(NamedTuple):
    """A layer, and the number of a request among those of its plan."""

    site: compat.AttentionSite
    request: int


class _Slot(NamedTuple):
    """Where one statistic of a layer lies: a row of a stack that all layers share."""

    stack: Any
    row: int
    memory: Tensor


class StepResults:
    """Statistics of the layers of one step.

    Args:
        layers: the most layers that measure. Their statistics of one shape lie together, so that a step
            takes one copy and not one per layer.
    """

    def __init__(self, layers: int):
        self._layers = layers
        self._stacks: dict[Any, list[Tensor]] = {}  # the memory, and its rows that are not in use yet
        self._slots: dict[Place, dict[str, _Slot]] = {}
        self._written: list[Place] = []
        self._loose: list[tuple[Place, Stats]] = []

    def write(self, place: Place, stats: Stats) -> None:
        """Leave the statistics of a layer in its memory, which is made at its first step."""
        parts = {name: part for name, part in stats._asdict().items() if part is not None}
        slots = self._slots.get(place)
        if slots is None:
            slots = self._slots[place] = {name: self._slot(place, name, part) for name, part in parts.items()}
        if any(slots[name].memory.shape != part.shape for name, part in parts.items()):
            self._loose.append((place, stats))  # whole rows of a cache that grows
            return
        for name, part in parts.items():
            slots[name].memory.copy_(part)
        self._written.append(place)

    def clear(self) -> None:
        """Forget what was written; the memory stays."""
        self._written, self._loose = [], []

    def _slot(self, place: Place, name: str, part: Tensor) -> _Slot:
        key = place.request, name, part.shape, part.dtype, part.device
        if key not in self._stacks:
            with torch.inference_mode(False):  # a generation may go on outside of inference mode
                memory = torch.zeros(self._layers, *part.shape, dtype=part.dtype, device=part.device)
            self._stacks[key] = [memory, *reversed(memory.unbind())]
        row = self._layers + 1 - len(self._stacks[key])
        return _Slot(key, row, self._stacks[key].pop())

    def take(self, replayed: bool) -> list[tuple[Place, Stats]]:
        """Copies of what was written since the last call, layer by layer.

        Args:
            replayed: a graph may have run without Python: where nothing was written, everything was.
        """
        taken, self._loose = self._loose, []
        written, self._written = self._written, []
        if replayed and not written and not taken:
            written = list(self._slots)
        stacks = {slot.stack for place in written for slot in self._slots[place].values()}
        copies = {stack: self._stacks[stack][0].clone() for stack in stacks}
        for place in written:
            slots = self._slots[place]
            parts = {name: copies[slot.stack][slot.row] for name, slot in slots.items()}
            taken.append((place, Stats(**parts)))
        return taken
