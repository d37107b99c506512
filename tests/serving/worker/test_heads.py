"""Workers that share a layer's heads do together what one does with all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from regaze.errors import UnsupportedModelError
from regaze.interventions.adhh.policy import DropHeavyChannel
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.kernels import (
    AttentionEdit,
    Channels,
    HeadSource,
    RowSelection,
    ScoreGate,
    StatsRequest,
    Windows,
    attend,
)
from regaze.serving.worker import heads
from regaze.serving.worker.heads import Heads, WorkerError, divides_not

HEADS, GROUPS, LENGTH, WIDTH = 6, 2, 9, 8


class Exchange:
    """Workers as threads: each gives its part, and all get the whole."""

    def __init__(self, workers: int):
        self.parts: dict[str, Any] = {}
        self.barrier = threading.Barrier(workers)

    def _all(self, part: Any) -> list[Any]:
        """What each worker has given, in the order of the workers."""
        self.parts[threading.current_thread().name] = part
        self.barrier.wait(10)
        parts = [self.parts[name] for name in sorted(self.parts)]
        self.barrier.wait(10)
        return parts

    def whole(self, part: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._all(part), 1)

    def agreed(self, failed: Sequence[bool]) -> list[bool]:
        return [any(flags) for flags in zip(*self._all(failed), strict=True)]

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What each worker does, by its number."""

        def named(number: int) -> Any:
            threading.current_thread().name = str(number)
            return work(number)

        with ThreadPoolExecutor(self.barrier.parties) as pool:
            return list(pool.map(named, range(self.barrier.parties)))


@pytest.fixture
def exchange(monkeypatch):
    """Makes so many workers."""

    def make(workers: int) -> Exchange:
        made = Exchange(workers)
        monkeypatch.setattr(heads, "_whole", made.whole)
        monkeypatch.setattr(heads, "agreed", made.agreed)
        return made

    return make


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def channels() -> Channels:
    groups = torch.tensor([[1, 1, 2, 2, 2, 0, 0, 1, 1]], dtype=torch.uint8)
    return Channels(groups, 3, random(1, 1, LENGTH).abs() * (groups == 1))


EDITS = {
    "columns": AttentionEdit(
        bias=random(1, HEADS, 5), score_gain=random(1, HEADS, 4), value_gain=random(1, 1, 3)
    ),
    "heads": AttentionEdit(
        head_gain=random(1, HEADS), head_score_gain=random(1, HEADS), sink=random(1, HEADS, LENGTH)
    ),
    "gains of rows": AttentionEdit(head_gain=random(1, HEADS, LENGTH)),
    "means over all heads": AttentionEdit(
        head_mean_slope=random(1, HEADS, 7), bias=random(1, HEADS, 5), rows=RowSelection(torch.tensor([3, 8]))
    ),
    "windows": AttentionEdit(windows=Windows(torch.tensor([[1, 2, 3, 4, 5, 6]]), 1)),
    "a policy over all heads": AttentionEdit(
        channels=channels(),
        policy=AmplifyTopHeads(4, 1, 2, 3, 3, 1.5),
        rows=RowSelection(torch.tensor([3, 8])),
    ),
    "a policy of some heads": AttentionEdit(
        channels=channels(), policy=DropHeavyChannel(4, 1, 0.3, (1, 4)), head_gain=random(1, HEADS)
    ),
    "a gate": AttentionEdit(score_gate=ScoreGate(torch.arange(LENGTH)[None] < 4, 2, 0.3)),
    "statistics": AttentionEdit(
        bias=random(1, HEADS, 5),
        stats=StatsRequest(channels=channels(), entropy=True, top1=True, edited=True),
    ),
}


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("name", EDITS)
def test_workers_do_together_what_one_does(exchange, name, workers):
    edit = EDITS[name].replace()
    query, key, value = (
        random(1, HEADS, LENGTH, WIDTH),
        random(1, GROUPS, LENGTH, WIDTH),
        random(1, GROUPS, LENGTH, 7),
    )
    key, value = (part.repeat_interleave(HEADS // GROUPS, 1) for part in (key, value))

    def work(number: int):
        count = HEADS // workers
        own = Heads(number * count, count, HEADS)
        out, stats = attend(*map(own.own, (query, key, value)), own.of(edit), is_causal=True, backend="torch")
        assert own.of(edit) is own.of(edit)
        return out, None if stats is None else own.gathered(stats)

    parts = exchange(workers).run(work)
    out, stats = attend(query, key, value, edit, is_causal=True, backend="torch")
    plain, _ = attend(query, key, value, AttentionEdit(), is_causal=True, backend="torch")
    assert not torch.allclose(out, plain)
    torch.testing.assert_close(torch.cat([part for part, _ in parts], 1), out)
    if stats is not None:
        for found, wanted in zip(parts[0][1], stats, strict=True):
            assert (found is None) == (wanted is None)
            if wanted is not None:
                torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("gathers", [(), (1,), (1, 2, 1)])
@pytest.mark.parametrize("fails_after", [0, 1, 2, 3])
def test_an_error_on_one_worker_is_one_on_all(exchange, gathers, fails_after):
    """Wherever it happens, nobody waits in vain, and what comes next is in step again."""

    def work(number: int) -> tuple[list[str], list[int]]:
        own, errors, widths = Heads(number, 1, 3), [], []
        for broken in (True, False):
            try:
                with own.together():
                    for count, width in enumerate(gathers):
                        if broken and number == 1 and count == fails_after:
                            raise ZeroDivisionError
                        widths.append(own.gather(torch.zeros(1, 1, width)).shape[1])
                    if broken and number == 1 and fails_after >= len(gathers):
                        raise ZeroDivisionError
            except (ZeroDivisionError, WorkerError) as error:
                errors.append(type(error).__name__)
        return errors, widths

    expected = min(fails_after, len(gathers)) + len(gathers)
    for number, (errors, widths) in enumerate(exchange(3).run(work)):
        assert errors == ["ZeroDivisionError" if number == 1 else "WorkerError"]
        assert widths == [3] * expected


def test_edits_that_read_scores_of_other_heads_are_refused():
    across = AttentionEdit(head_source=HeadSource(torch.tensor([[1, 0, 2, 3, 4, 5]])))
    with pytest.raises(UnsupportedModelError, match="lie in other processes"):
        Heads(0, 3, HEADS).of(across)
    assert all(divides_not(edit) is None for edit in EDITS.values())


def test_a_worker_without_others_has_all_heads(monkeypatch):
    pytest.importorskip("vllm")
    import vllm.distributed as distributed

    monkeypatch.setattr(distributed, "get_tensor_model_parallel_world_size", lambda: 1)
    assert heads.own_heads(4) is None
    monkeypatch.setattr(distributed, "get_tensor_model_parallel_world_size", lambda: 3)
    monkeypatch.setattr(distributed, "get_tensor_model_parallel_rank", lambda: 2)
    assert heads.own_heads(4) == Heads(8, 4, 12)
