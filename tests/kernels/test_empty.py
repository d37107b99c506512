"""No samples, no rows, no keys, no named columns: well-defined results in every backend."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import random_like, stats_dict

from regaze.errors import ShapeError
from regaze.kernels import (
    AttentionEdit,
    Channels,
    HeadSource,
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
BACKEND = pytest.mark.parametrize("backend", list(BACKENDS))
HEADS, DIM, VALUE_DIM = 4, 16, 8


def tensors(batch: int, queries: int, keys: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((HEADS, queries, DIM), (2, keys, DIM), (2, keys, VALUE_DIM))
    return [random_like(g, batch, *shape) for shape in shapes]


def full_edit(batch: int, queries: int, keys: int, named: int) -> AttentionEdit:
    rows = RowSelection(torch.arange(queries), torch.ones(batch, queries, dtype=torch.bool))
    channels = Channels(torch.zeros(batch, named, dtype=torch.uint8), 3)
    return AttentionEdit(
        rows=rows,
        score_slope=torch.ones(1, 1, named),
        head_mean_slope=torch.ones(batch, 1, named),
        bias=torch.ones(batch, HEADS, named),
        channels=channels,
        policy=Scale((1.0, 2.0, 0.5), renormalise=True),
        value_gain=torch.ones(1, HEADS, named),
        spread=torch.ones(batch, named, dtype=torch.bool),
        head_gain=torch.ones(batch, HEADS, queries),
        unmask=(UnmaskRect(torch.ones(1, queries).bool(), torch.ones(1, named).bool()),),
        windows=Windows(torch.full((1, HEADS), 4), 1),
        head_source=HeadSource(torch.zeros(1, HEADS, dtype=torch.int64)),
        stats=StatsRequest(
            rows, channels, entropy=True, top1=True, lse=True, full_rows=True, edited=bool(queries)
        ),
    )


SIZES = [(0, 3, 5), (0, 1, 5), (2, 0, 5), (2, 3, 0), (2, 1, 0), (0, 0, 0), (1, 20, 0), (0, 20, 5)]


@BACKEND
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("sinks", [None, torch.tensor([1.0, -1.0, 0.0, -torch.inf])])
def test_calls_without_samples_rows_or_keys(backend, sizes, sinks):
    batch, queries, keys = sizes
    q, k, v = tensors(*sizes)
    edit = full_edit(*sizes, named=min(2, keys))
    for mask in (None, torch.zeros(batch, 1, queries, keys), torch.ones(1, 1, queries, keys).bool()):
        options = {"mask": mask, "is_causal": mask is None, "sinks": sinks, "backend": backend}
        out, stats = attend(q, k, v, edit, **options)
        assert torch.equal(out, torch.zeros(batch, HEADS, queries, VALUE_DIM))
        assert torch.equal(attend(q, k, v, **options)[0], out)
        lse = torch.full((HEADS,), -torch.inf) if sinks is None else sinks
        wanted = {
            "masses": torch.zeros(batch, HEADS, queries, 3),
            "entropy": torch.zeros(batch, HEADS, queries),
            "top_weight": torch.zeros(batch, HEADS, queries),
            "top_column": torch.zeros(batch, HEADS, queries, dtype=torch.int64),
            "lse": lse[:, None].expand(batch, HEADS, queries),
            "slices": torch.zeros(batch, HEADS, queries, keys),
        }
        for found in (stats, attention_stats(q, k, edit.stats, **options)):
            assert stats_dict(found).keys() == wanted.keys()
            for name, tensor in stats_dict(found).items():
                assert torch.equal(tensor, wanted[name]), name
        for rows in (None, edit.rows, RowSelection(torch.empty(0, dtype=torch.int64))):
            found = attention_stats(q, k, columns="sum", rows=rows, per_query_head=True, **options)
            assert torch.equal(found.received, torch.zeros(batch, HEADS, keys))


@BACKEND
def test_statistics_of_a_row_without_keys_are_those_of_a_fully_masked_one(backend):
    q, k, _ = tensors(2, 3, 1)
    rows = RowSelection(torch.tensor([0, 2]), torch.tensor([[True, False], [True, True]]))
    request = StatsRequest(rows, entropy=True, top1=True, lse=True, columns=torch.full((2, 4), -1))
    nothing = torch.zeros(1, 1, 3, 1, dtype=torch.bool)
    masked = attention_stats(q, k, request, mask=nothing, backend=backend)
    empty = attention_stats(q, k[:, :, :0], request, backend=backend)
    for name, tensor in stats_dict(masked).items():
        assert torch.equal(getattr(empty, name), tensor), name


@BACKEND
@pytest.mark.parametrize("queries", [1, 20])
def test_edits_of_no_columns_and_no_rows_are_neutral(backend, queries):
    q, k, v = tensors(2, queries, 5)
    plain, _ = attend(q, k, v, backend=backend)
    none = RowSelection(torch.empty(0, dtype=torch.int64))
    for edit in (
        AttentionEdit(bias=torch.ones(1, 1, 0), value_gain=torch.ones(2, HEADS, 0)),
        AttentionEdit(channels=Channels(torch.ones(1, 0, dtype=torch.uint8), 2), policy=Scale((1.0, 0.0))),
        AttentionEdit(
            rows=none, channels=Channels(torch.ones(1, 5, dtype=torch.uint8), 2), policy=Scale((0.0, 2.0))
        ),
        AttentionEdit(unmask=(UnmaskRect(torch.ones(1, queries).bool(), torch.ones(1, 0).bool()),)),
    ):
        torch.testing.assert_close(attend(q, k, v, edit, backend=backend)[0], plain, rtol=0, atol=1e-6)
    stats = attention_stats(q, k, StatsRequest(columns=torch.ones(1, 0).long()), backend=backend)
    assert stats.slices.shape == (2, HEADS, queries, 0)
    stats = attention_stats(q, k, StatsRequest(none, entropy=True, full_rows=True), backend=backend)
    assert stats.entropy.shape == (2, HEADS, 0)
    assert stats.slices.shape == (2, HEADS, 0, 5)
    stats = attention_stats(q, k, columns="sum", rows=none, per_query_head=True, backend=backend)
    assert torch.equal(stats.received, torch.zeros(2, HEADS, 5))


@pytest.mark.parametrize("sizes", [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_empty_results_have_gradients(sizes):
    q, k, v = (x.requires_grad_() for x in tensors(*sizes))
    attend(q, k, v)[0].sum().backward()
    assert torch.equal(q.grad, torch.zeros_like(q))


@BACKEND
def test_no_heads_and_no_width_are_refused(backend):
    whole = {"q": (1, 2, 3, 4), "k": (1, 2, 3, 4), "v": (1, 2, 3, 4)}
    for change in (
        {"q": (1, 0, 3, 4)},
        {"k": (1, 0, 3, 4), "v": (1, 0, 3, 4)},
        {"q": (1, 2, 3, 0), "k": (1, 2, 3, 0)},
        {"v": (1, 2, 3, 0)},
    ):
        q, k, v = (torch.zeros(shape) for shape in (whole | change).values())
        with pytest.raises(ShapeError, match="at least one head"):
            attend(q, k, v, backend=backend)
