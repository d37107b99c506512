"""Tensors of any strides mean what contiguous ones mean, in every backend."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import random_like, stats_dict

from regaze.kernels import (
    AttentionEdit,
    Channels,
    RowSelection,
    Scale,
    StatsRequest,
    UnmaskRect,
    Windows,
    attend,
    attention_stats,
)
from regaze.kernels.backends import BACKENDS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in Triton's interpreter
KEYS = 70


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with every stride doubled and the first two dimensions swapped in memory."""
    if tensor.dim() > 1:
        tensor = tensor.transpose(0, 1).contiguous().transpose(0, 1)
    wide = tensor.repeat_interleave(2, -1)[..., ::2]
    assert not wide.is_contiguous() or wide.shape[-1] < 2
    return wide


def call(queries: int, change) -> tuple[tuple, AttentionEdit, dict]:
    """A call in which every tensor went through `change`."""
    g = torch.Generator().manual_seed(queries)
    qkv = (random_like(g, 2, 4, queries, 16), *(random_like(g, 2, 2, KEYS, 16) for _ in range(2)))
    chosen = torch.arange(0, queries, 2)
    rows = RowSelection(change(chosen), change(torch.rand(2, len(chosen), generator=g) > 0.3))
    groups = torch.randint(0, 2, (2, KEYS), generator=g, dtype=torch.uint8)
    channels = Channels(change(groups), 2, change(torch.rand(1, 2, KEYS, generator=g)))
    opened = torch.rand(2, queries, generator=g) > 0.5
    edit = AttentionEdit(
        rows=rows,
        bias=change(random_like(g, 2, 4, KEYS)),
        score_gain=change(1 + random_like(g, 2, 4, KEYS, scale=0.1)),
        head_score_gain=change(1 + random_like(g, 2, 4, scale=0.1)),
        value_gain=change(random_like(g, 2, 4, KEYS)),
        head_gain=change(random_like(g, 2, 4, queries)),
        channels=channels,
        policy=Scale((0.5, 2.0, 1.0)),
        unmask=(UnmaskRect(change(opened), change(torch.rand(2, KEYS, generator=g) > 0.7)),),
        windows=Windows(change(torch.randint(40, 70, (2, 4), generator=g)), 2, change(torch.tensor([1, 3]))),
        stats=StatsRequest(
            rows=rows, channels=channels, entropy=True, lse=True, columns=change(groups[:, :4].long())
        ),
    )
    mask = torch.rand(2, 4, queries, KEYS, generator=g) > 0.3
    options = {"mask": change(mask), "sinks": change(random_like(g, 4))}
    return tuple(change(x) for x in qkv), edit, options


@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("queries", [3, 20])
def test_strided_tensors_are_read_right(backend, queries):
    results = []
    for change, name in ((lambda x: x, "reference"), (strided, backend)):
        (q, k, v), edit, options = call(queries, change)
        out, stats = attend(q, k, v, edit, backend=name, **options)
        alone = attention_stats(q, k, edit.stats, backend=name, **options)
        columns = {"columns": "sum", "rows": edit.rows, "per_query_head": True}
        sums = attention_stats(q, k, backend=name, **columns, **options).received
        results.append([out, sums, *stats_dict(stats).values(), *stats_dict(alone).values()])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("queries", [1, 20])
def test_expanded_tensors_are_read_right(backend, queries):
    g = torch.Generator().manual_seed(0)
    q, k, v = random_like(g, 1, 4, queries, 16), *(random_like(g, 1, 2, KEYS, 16) for _ in range(2))
    q, k, v = (x.expand(3, -1, -1, -1) for x in (q, k, v))
    edit = AttentionEdit(
        bias=torch.ones(1, 1, 1).expand(3, 4, 9),
        value_gain=torch.full((1, 1, 1), 0.5).expand(3, 4, 9),
        head_gain=torch.full((1, 1), 2.0).expand(3, 4),
        windows=Windows(torch.tensor([[30]]).expand(3, 4), 1, torch.tensor([2]).expand(3)),
        stats=StatsRequest(
            rows=RowSelection(torch.tensor([0]), torch.ones(1, 1, dtype=torch.bool).expand(3, 1)), lse=True
        ),
    )
    sinks = torch.tensor([0.5]).expand(4)
    want, wanted = attend(q, k, v, edit, sinks=sinks, backend="reference")
    out, stats = attend(q, k, v, edit, sinks=sinks, backend=backend)
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stats.lse, wanted.lse, rtol=1e-4, atol=1e-4)
