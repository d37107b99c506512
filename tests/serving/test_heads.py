"""Workers that share a layer's heads do together what one does with all of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

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
from regaze.serving import heads
from regaze.serving.heads import Heads, divides_not

HEADS, GROUPS, LENGTH, WIDTH = 6, 2, 9, 8


class Exchange:
    """Workers as threads: each gives its part, and all get the whole."""

    def __init__(self, workers: int):
        self.parts: dict[int, torch.Tensor] = {}
        self.barrier = threading.Barrier(workers)

    def gather(self, own: Heads, part: torch.Tensor) -> torch.Tensor:
        self.parts[own.first] = part
        self.barrier.wait(10)
        whole = torch.cat([self.parts[first] for first in sorted(self.parts)], 1)
        self.barrier.wait(10)
        return whole


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
def test_workers_do_together_what_one_does(monkeypatch, name, workers):
    edit, exchange = EDITS[name].replace(), Exchange(workers)
    monkeypatch.setattr(Heads, "gather", lambda own, part: exchange.gather(own, part))
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

    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(work, range(workers)))
    out, stats = attend(query, key, value, edit, is_causal=True, backend="torch")
    plain, _ = attend(query, key, value, AttentionEdit(), is_causal=True, backend="torch")
    assert not torch.allclose(out, plain)
    torch.testing.assert_close(torch.cat([part for part, _ in parts], 1), out)
    if stats is not None:
        for found, wanted in zip(parts[0][1], stats, strict=True):
            assert (found is None) == (wanted is None)
            if wanted is not None:
                torch.testing.assert_close(found, wanted)


def test_edits_that_read_scores_of_other_heads_are_refused():
    across = (
        AttentionEdit(head_mean_slope=random(1, 1, 4)),
        AttentionEdit(head_source=HeadSource(torch.tensor([[1, 0, 2, 3, 4, 5]]))),
    )
    for edit in across:
        with pytest.raises(UnsupportedModelError, match="lie in other processes"):
            Heads(0, 3, HEADS).of(edit)
    assert all(divides_not(edit) is None for edit in EDITS.values())


def test_a_worker_without_others_has_all_heads(monkeypatch):
    pytest.importorskip("vllm")
    import vllm.distributed as distributed

    monkeypatch.setattr(distributed, "get_tensor_model_parallel_world_size", lambda: 1)
    assert heads.own_heads(4) is None
    monkeypatch.setattr(distributed, "get_tensor_model_parallel_world_size", lambda: 3)
    monkeypatch.setattr(distributed, "get_tensor_model_parallel_rank", lambda: 2)
    assert heads.own_heads(4) == Heads(8, 4, 12)
