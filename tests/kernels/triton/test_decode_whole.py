"""Rows whose only split finishes them: as merged rows, with one launch."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import random_like

from regaze.interventions.common.move_mass import MoveMass
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.kernels import AttentionEdit, Channels, RowSelection, Scale, StatsRequest, attend, attention_stats

pytest.importorskip("triton")

from regaze.kernels.triton import decode, tiling
from regaze.kernels.triton.bound import Launch
from regaze.kernels.triton.call import Call
from regaze.kernels.triton.decode_operators import DecodeCall

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in branches not taken
HEADS, KEYS = 6, 70


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that plans launch, with one split."""
    names, launch, chosen = [], Launch.__call__, tiling.decode_tiling

    def noted(self, *args):
        names.append(self.kernel.__name__)
        launch(self, *args)

    monkeypatch.setattr(Launch, "__call__", noted)
    monkeypatch.setattr(
        decode, "decode_tiling", lambda *args, **named: chosen(*args, **named)._replace(num_splits=1)
    )
    return names


def tensors(g, queries, batch=2):
    shapes = ((HEADS, queries, 32), (2, KEYS, 32), (2, KEYS, 48))
    return [random_like(g, batch, *shape).to(DEVICE) for shape in shapes]


def policies(groups):
    free = torch.rand(1, 2, KEYS - 10, device=groups.device)
    return {
        "plain": {},
        "move mass": {
            "channels": Channels(groups, 4),
            "policy": MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.1, 0.1),
        },
        "scale": {"channels": Channels(groups % 2, 2, free), "policy": Scale((1.0, 0.5, 2.0))},
    }


@pytest.mark.parametrize("policy", ["plain", "move mass", "scale"])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("sink", [False, True])
def test_one_launch_gives_output_and_statistics(policy, queries, sink, launched):
    g = torch.Generator().manual_seed(queries)
    q, k, v = tensors(g, queries)
    groups = torch.randint(0, 4, (2, KEYS - 10), generator=g, dtype=torch.uint8).to(DEVICE)
    sinks = random_like(g, HEADS).to(DEVICE) if sink else None
    last = RowSelection(
        torch.tensor([queries - 1], device=DEVICE), torch.tensor([[True], [False]], device=DEVICE)
    )
    mask = torch.ones(2, 1, queries, KEYS, dtype=torch.bool, device=DEVICE)
    mask[1, :, 0] = False  # a row without keys
    for rows, seen in ((None, None), (last, mask)):
        edit = AttentionEdit(
            rows,
            head_gain=torch.rand(2, HEADS, queries, generator=g).to(DEVICE),
            bias=random_like(g, 1, HEADS, KEYS - 20).to(DEVICE),
            sink=random_like(g, 2, HEADS, queries).to(DEVICE) if sink else None,
            stats=StatsRequest(rows, Channels(groups, 4), entropy=True, top1=True, lse=True),
            **policies(groups)[policy],
        )
        launched.clear()
        out, stats = attend(q, k, v, edit, mask=seen, sinks=sinks, backend="triton")
        assert launched == ["split_kernel"]
        want, wanted = attend(q, k, v, edit, mask=seen, sinks=sinks, backend="reference")
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
        for got, exact in zip(stats[:5], wanted[:5], strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-5)


def test_statistics_alone_and_slices(launched):
    g = torch.Generator().manual_seed(1)
    q, k, _ = tensors(g, 2)
    columns = torch.tensor([[3, -1, 60]], device=DEVICE)
    request = StatsRequest(entropy=True, lse=True, columns=columns)
    stats, wanted = (attention_stats(q, k, request, backend=name) for name in ("triton", "reference"))
    assert launched == ["split_kernel"]
    for name in ("entropy", "lse", "slices"):
        torch.testing.assert_close(getattr(stats, name), getattr(wanted, name), rtol=1e-4, atol=1e-5)


def test_what_one_split_finishes_is_what_a_merge_makes_of_it(launched):
    g = torch.Generator().manual_seed(2)
    q, k, v = (x.half() for x in tensors(g, 1))
    groups = torch.randint(0, 4, (2, KEYS), generator=g, dtype=torch.uint8).to(DEVICE)
    request = StatsRequest(channels=Channels(groups, 4), entropy=True, top1=True, lse=True)
    edit = AttentionEdit(stats=request, **policies(groups[:, :-10])["move mass"])
    whole, stats = attend(q, k, v, edit, backend="triton")
    assert launched == ["split_kernel"]
    call = Call(q, k, v, edit, None, 32**-0.5, False, None, None)
    merged, others = DecodeCall(call).run(request)
    assert torch.equal(whole, merged)
    for got, want in zip(stats[:5], others[:5], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_policies_that_run_between_the_kernels_keep_them(launched):
    g = torch.Generator().manual_seed(3)
    q, k, v = tensors(g, 1)
    groups = torch.randint(0, 3, (2, KEYS), generator=g, dtype=torch.uint8).to(DEVICE)
    salient = torch.rand(1, 2, KEYS, generator=g).to(DEVICE)
    gift = AmplifyTopHeads(4, image=1, query=2, salient=3, heads=2)
    edit = AttentionEdit(channels=Channels(groups, 3, salient), policy=gift)
    out, _ = attend(q, k, v, edit, backend="triton")
    assert launched == ["split_kernel", "head_kernel", "decode_merge_kernel"]
    torch.testing.assert_close(out, attend(q, k, v, edit, backend="reference")[0], rtol=1e-5, atol=1e-5)


def test_many_samples_have_one_split():
    """33 samples of 8 key heads are two programs for each of 132 multiprocessors."""
    shape = {"kv_heads": 8, "rows": 4, "keys": 4096, "width": 128, "channels": 4, "edited": False}
    shape |= {"recorded": True, "element_size": 2, "processors": 132, "architecture": "sm_90"}
    assert [tiling.decode_tiling(batch, **shape).num_splits for batch in (1, 32, 33)] == [33, 2, 1]
