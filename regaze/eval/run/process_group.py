"""The processes of one run, started by `accelerate launch`: how they divide the requests and wait.

Every process loads the model and answers its part of the requests; the main process scores. Answers travel
through the journals in the output folder, which all processes must see: no process holds another's answers
in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from regaze.errors import InputError
from regaze.eval.run.requests import AnswerRequest

#: How long the first process to finish waits for the last one.
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, as one of them knows them.

    Attributes:
        rank: of this process; 0 is the main process. size: number of processes.
        local_size: number of processes on this machine. local_rank: rank among these.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, cpu: bool = False) -> ProcessGroup:
        """The processes that `accelerate launch` started; this process alone without it.

        Args:
            cpu: run on processors even where there are GPUs.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        state = _partial_state(cpu=cpu or not torch.cuda.is_available())
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        return cls(state.process_index, state.num_processes, local_size, state.local_process_index)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all processes are here. Raises InputError where one of them has ended."""
        if self.size > 1:
            with _lost_process():
                _partial_state().wait_for_everyone()

    def broadcast(self, value: Any) -> Any:
        """The main process's `value`, on every process. Raises InputError as `barrier`."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        with _lost_process():
            return broadcast_object_list([value])[0]

    def split(self, requests: Sequence[AnswerRequest], batch_size: int) -> list[AnswerRequest]:
        """This process's part of the requests.

        Up to `batch_size` requests about the same images stay on one process.
        """
        groups: dict[Any, list[AnswerRequest]] = {}
        for request in requests:
            groups.setdefault(request.images or request.key, []).append(request)
        chunks = [
            group[start : start + batch_size]
            for group in groups.values()
            for start in range(0, len(group), batch_size)
        ]
        chunks.sort(key=len, reverse=True)  # dealt in turn, the largest first
        return [request for chunk in chunks[self.rank :: self.size] for request in chunk]


@contextmanager
def _lost_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of torch.distributed: a connection was closed
        raise InputError("another process of this run has ended; its own message says why") from error


def _partial_state(**options: Any) -> Any:
    from accelerate import PartialState

    return PartialState(timeout=_TIMEOUT, **options)
