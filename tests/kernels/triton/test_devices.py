"""Every kernel is launched while the device of its tensors is the current one, whichever that was before."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime.interpreter import GridExecutor

from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.kernels import AttentionEdit, Channels, StatsRequest, attend, attention_stats

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="tensors on the CPU pretend to lie on a GPU"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy's, in Triton's interpreter
]


@pytest.fixture
def launches(monkeypatch):
    """The current devices at each launch, the innermost last, where CPU tensors are taken for a GPU's."""
    current, seen = [], []

    class Guard:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *error):
            current.pop()

    run = GridExecutor.__call__

    def launch(self, *args, **kwargs):
        seen.append(list(current))
        return run(self, *args, **kwargs)

    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)  # another one than that of the tensors
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(GridExecutor, "__call__", launch)
    return seen


def edit_of(keys: int) -> AttentionEdit:
    """Everything that launches kernels of its own: a policy across heads, and every statistic."""
    groups = torch.arange(keys, dtype=torch.uint8)[None] % 3
    channels = Channels(groups, 3, torch.ones(1, 1, keys))
    request = StatsRequest(channels=channels, entropy=True, columns=torch.zeros(1, 1, dtype=torch.int64))
    return AttentionEdit(channels=channels, policy=AmplifyTopHeads(4, 1, 2, 3, heads=2), stats=request)


@pytest.mark.parametrize("queries", [1, 9], ids=["decode", "prefill"])
@pytest.mark.parametrize("name", ["attend", "attention_stats", "received"])
def test_the_device_of_the_query_is_current_at_every_launch(launches, name, queries):
    q, k, v = (torch.randn(1, 4, n, 16) for n in (queries, 9, 9))
    mask = torch.ones(1, 1, queries, 9, dtype=torch.bool).tril(9 - queries)
    edit = edit_of(9)
    calls = {
        "attend": lambda: attend(q, k, v, edit, mask=mask, backend="triton"),
        "attention_stats": lambda: attention_stats(q, k, edit.stats, mask=mask, backend="triton"),
        "received": lambda: attention_stats(q, k, columns="sum", mask=mask, backend="triton"),
    }
    calls[name]()
    assert launches
    assert all(devices[-1:] == [q.device] for devices in launches)
