"""Several processes on one run, started by `accelerate launch`: who asks what, and how they wait for each
other.

Every process loads the model and asks its share; the first one scores. Answers travel through the journals in
the output folder, which all processes must see: no process holds those of another in memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from regaze.eval.run.requests import Request

#: How long the first process to finish waits for the last one.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Team:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: 0 is the first. size: how many. here: how many on this machine. local_rank: this one's number
            there.
    """

    rank: int = 0
    size: int = 1
    here: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.size > 1:
            _state().wait_for_everyone()

    def agree(self, value: Any) -> Any:
        """The first process's `value`, on all of them."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def share(self, requests: Sequence[Request], batch_size: int) -> list[Request]:
        """This process's part. Questions about the same images stay together, at most a batch of them."""
        groups: dict[Any, list[Request]] = {}
        for request in requests:
            groups.setdefault(request.images or request.key, []).append(request)
        parts = [
            group[start : start + batch_size]
            for group in groups.values()
            for start in range(0, len(group), batch_size)
        ]
        parts.sort(key=len, reverse=True)  # dealt like cards: nobody gets more than one part more
        return [request for part in parts[self.rank :: self.size] for request in part]


def assemble(cpu: bool = False) -> Team:
    """The processes that `accelerate launch` started; this one alone where it did not.

    Args:
        cpu: they run on processors, whatever else there is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team()
    state = _state(cpu=cpu or not torch.cuda.is_available())
    here = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    return Team(state.process_index, state.num_processes, here, state.local_process_index)


def _state(**options: Any) -> Any:
    from accelerate import PartialState

    return PartialState(timeout=_PATIENCE, **options)
