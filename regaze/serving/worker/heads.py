"""Edits and statistics of some of a layer's heads: those of one worker where workers share the heads.

Methods know all heads. A worker runs its part of an edit on its own heads; what methods measure is gathered
from all workers, and so are the masses that a policy reads, since it may compare heads, and sums of scores
over heads. Every worker runs the same requests in the same order, so that all of them are there whenever one
gathers: where one fails, it tells the others at the next place where they meet (`Heads.meet`), and the
request has failed on all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from regaze.errors import RegazeError, UnsupportedModelError
from regaze.kernels import AttentionEdit, ScoreGate, Stats
from regaze.kernels.spec import COLUMN_PARTS

#: Parts of an edit in which a head reads each score of others.
_ACROSS = {"head_source": "scores of other heads"}


@dataclass(frozen=True)
class Heads:
    """The query heads first ... first + count - 1 of `total`, those of one worker of several."""

    first: int
    count: int
    total: int

    def of(self, edit: AttentionEdit) -> AttentionEdit:
        """The part of an edit of all heads that is theirs; the same object each time."""
        place = f"heads from {self.first}"
        if place not in edit.backend_cache:
            edit.backend_cache[place] = self._of(edit)
        own: AttentionEdit = edit.backend_cache[place]
        return own

    def _of(self, edit: AttentionEdit) -> AttentionEdit:
        if (reason := divides_not(edit)) is not None:
            raise UnsupportedModelError(reason)
        changes: dict[str, Any] = {}
        for name in (*COLUMN_PARTS, "sink", "head_score_gain", "head_gain"):
            if (part := getattr(edit, name)) is not None:
                changes[name] = self._cut(part)
        if edit.windows is not None:
            changes["windows"] = replace(edit.windows, span=self._cut(edit.windows.span))
        if edit.policy is not None:
            changes["policy"] = GatheredPolicy(edit.policy, self)
        if (gate := edit.score_gate) is not None:
            changes["score_gate"] = GatheredGate(gate.columns, gate.kept, gate.factor, gate.rows, self)
        if edit.head_mean_slope is not None:
            parts = {part.name: getattr(edit, part.name) for part in fields(edit) if part.init}
            edit = DividedEdit(**parts, heads=self)
        return edit.replace(**changes) if changes else edit

    def _cut(self, part: Tensor) -> Tensor:
        """Of a part [B or 1, Hq or 1, ...]."""
        return part if part.shape[1] == 1 else self.own(part)

    def own(self, part: Tensor) -> Tensor:
        """[B, own heads, ...] of [B, Hq, ...]."""
        return part[:, self.first : self.first + self.count]

    def gathered(self, stats: Stats) -> Stats:
        """Statistics of all heads. Raises WorkerError as `meet`."""
        self.meet()
        return Stats(*(None if part is None else _whole(part) for part in stats))

    def gather(self, part: Tensor) -> Tensor:
        """[B, Hq, ...] of all workers' [B, own heads, ...]. Raises WorkerError as `meet`."""
        self.meet()
        return _whole(part)

    def meet(self, failed: bool = False) -> None:
        """Wait until all workers are here, before they do what none of them can do alone.

        Raises:
            WorkerError: another one has failed on its way.
        """
        if agreed([failed])[0] and not failed:
            raise WorkerError

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all workers do in the block: an error on one is one on all, and none waits for it."""
        try:
            yield
        except WorkerError:
            raise
        except Exception:
            self.meet(failed=True)
            raise
        self.meet()


class WorkerError(RegazeError):
    """Of a request that has failed on another worker."""

    def __init__(self) -> None:
        super().__init__("another worker of this engine has failed with this request; its log says why")


def agreed(failed: Sequence[bool]) -> list[bool]:
    """What any worker has found to have failed. All workers wait for each other here."""
    from torch.distributed import ReduceOp, all_reduce
    from vllm.distributed import get_tp_group

    flags = torch.tensor(failed, dtype=torch.uint8)
    all_reduce(flags, ReduceOp.MAX, group=get_tp_group().cpu_group)
    return [bool(flag) for flag in flags.tolist()]


def _whole(part: Tensor) -> Tensor:
    from vllm.distributed import tensor_model_parallel_all_gather

    whole: Tensor = tensor_model_parallel_all_gather(part.contiguous(), 1)
    return whole


def own_heads(count: int) -> Heads | None:
    """Those of this worker, which has `count` of a layer's; None: all."""
    from vllm.distributed import (
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
    )

    workers = get_tensor_model_parallel_world_size()
    return Heads(get_tensor_model_parallel_rank() * count, count, workers * count) if workers > 1 else None


@dataclass(frozen=True)
class GatheredPolicy:
    """A policy on the masses of all heads, for those of one worker: one gather in a layer."""

    policy: Any
    heads: Heads = field(repr=False)

    @property
    def channels(self) -> int:
        count: int = self.policy.channels
        return count

    def __call__(self, masses: Tensor) -> Tensor:
        return self.heads.own(self.policy(self.heads.gather(masses)))


@dataclass(frozen=True, eq=False)
class GatheredGate(ScoreGate):
    """A gate that ranks the heads of all workers."""

    heads: Heads | None = None

    def gains(self, sums: Tensor) -> Tensor:
        """Factors of one worker's heads, from their sums of scores."""
        assert self.heads is not None
        return self.heads.own(super().gains(self.heads.gather(sums)))


@dataclass(frozen=True, eq=False)
class DividedEdit(AttentionEdit):
    """One worker's part of an edit with means over the heads of all workers: one gather in a layer."""

    heads: Heads | None = None

    def head_mean(self, scores: Tensor) -> Tensor:
        """As `AttentionEdit.head_mean`, of all workers' heads, from the scores of this one's."""
        assert self.heads is not None
        sums = self.heads.gather(scores.abs().sum(1, keepdim=True))
        return sums.sum(1, keepdim=True) / self.heads.total


def meets(edit: AttentionEdit) -> bool:
    """Whether workers gather something while they attend under this edit."""
    gathered = edit.policy, edit.score_gate, edit.head_mean_slope
    return any(part is not None for part in gathered)


def divides_not(edit: AttentionEdit) -> str | None:
    """Why workers cannot share the heads of this edit; None: they can."""
    for name, what in _ACROSS.items():
        if getattr(edit, name) is not None:
            return f"this method reads {what}, which lie in other processes (tensor parallel)"
    return None
