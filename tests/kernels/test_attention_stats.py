"""`attention_stats` by name: what token pruning and cache compression read off attention."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from regaze.errors import BadParameterError, ShapeError
from regaze.kernels import BACKENDS, AttentionEdit, Channels, RowSelection, StatsRequest, attention_stats
from regaze.kernels.torch_backend import attend_torch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in branches not taken

#: Two query heads that share a key head, three causal rows each.
ROWS = torch.tensor(
    [[[1, 0, 0], [0.4, 0.6, 0], [0.2, 0.3, 0.5]], [[1, 0, 0], [0.5, 0.5, 0], [0.6, 0.2, 0.2]]]
)


def hand_example():
    """Queries and keys whose attention is `ROWS`: the keys are unit vectors, the queries logarithms."""
    query, key = torch.zeros(1, 2, 3, 16), torch.zeros(1, 1, 3, 16)
    query[0, :, :, :3] = ROWS.clamp_min(1e-9).log()
    key[0, 0, :, :3] = torch.eye(3)
    return query, key


@pytest.fixture(params=list(BACKENDS))
def received(request):
    """`Stats.received` [Lk] of the hand example."""
    query, key = hand_example()

    def call(columns="sum", **options):
        options = {"scaling": 1.0, "is_causal": True, "backend": request.param} | options
        return attention_stats(query, key, columns=columns, **options).received[0, 0]

    return call


def close(got, want):
    torch.testing.assert_close(got, torch.as_tensor(want), rtol=1e-5, atol=1e-6)


def test_h2o_is_the_mean_over_heads_and_the_rows_that_see_a_key(received):
    close(received() / 2 / torch.tensor([3, 2, 1]), [0.616667, 0.4, 0.35])


def test_tova_is_the_last_row(received):
    close(received(window=1)[:2] / 2, [0.4, 0.25])


def test_snapkv_is_the_mean_of_a_last_window(received):
    close(received(window=2)[0] / 4, 0.425)


def test_finch_weighs_the_rows_of_the_window(received):
    weights = torch.tensor([[1.0, 2.0]])
    close(received(window=2, row_weights=weights), [0.9 + 2 * 0.8, 1.1 + 2 * 0.5, 2 * 0.7])


def test_kvzip_is_the_largest_weight_of_any_row_and_head(received):
    close(received("max"), [1.0, 0.6, 0.5])
    close(received("max", row_weights=torch.tensor([[0.0, 0.5, 1.0]])), [0.6, 0.3, 0.5])


def random_case(seed: int):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 6, 21, 16, generator=g), torch.randn(2, 2, 33, 16, generator=g)
    mask = torch.ones(2, 1, 21, 33, dtype=torch.bool).tril(12).triu(-3)  # a sliding window
    mask[0, ..., :9] = False  # and padding
    return q, k, mask, torch.randn(6, generator=g), g


@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("columns", ["sum", "max"])
def test_windows_padding_sinks_and_rows_that_differ_by_sample(backend, columns):
    q, k, mask, sinks, g = random_case(3)
    rows = RowSelection.where(torch.rand(2, 21, generator=g) > 0.4)
    factors = torch.rand(2, len(rows.index), generator=g)
    groups = Channels(torch.randint(0, 3, (2, 33), generator=g, dtype=torch.uint8), 3)
    options = {"mask": mask, "sinks": sinks, "softcap": 4.0}
    stats = attention_stats(
        q, k, masses=groups, columns=columns, rows=rows, row_weights=factors, backend=backend, **options
    )
    request = StatsRequest(rows, groups, full_rows=True)
    wanted = attention_stats(q, k, request, backend="reference", **options)
    weights = (wanted.slices * factors[:, None, :, None]).unflatten(1, (2, 3))
    want = weights.sum((2, 3)) if columns == "sum" else weights.amax((2, 3))
    torch.testing.assert_close(stats.received, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats.masses, wanted.masses, rtol=1e-5, atol=1e-6)
    assert not stats.received[0, :, :9].any()
    assert stats.slices is None
    columns = {"columns": columns, "rows": rows, "row_weights": factors, "per_query_head": True}
    each = attention_stats(q, k, backend=backend, **columns, **options).received.unflatten(1, (2, 3))
    want = weights.sum(3) if columns["columns"] == "sum" else weights.amax(3)
    torch.testing.assert_close(each, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_no_rows_give_nothing_and_dropped_keys_zeros(backend):
    q, k, mask, _, _ = random_case(4)
    none = RowSelection(torch.arange(0))
    for columns in ("sum", "max"):
        assert not attention_stats(q, k, columns=columns, rows=none, backend=backend).received.any()
    later = attention_stats(q, k, columns="sum", mask=mask, first_key=5, backend=backend).received
    assert later.shape == (2, 2, 38)
    assert not later[..., :5].any()
    close(later.sum(), 2 * 6 * 21 - float((~mask.any(-1)).sum() * 6))


def test_mistakes_are_named():
    q, k, _, _, _ = random_case(5)
    one = Channels(torch.zeros(1, 3).byte(), 1)
    for options, said in (
        ({}, "nothing to report"),
        ({"columns": "mean"}, 'must be "sum" or "max"'),
        ({"columns": "sum", "window": 22}, "window must be 1 to Lq = 21"),
        ({"columns": "sum", "window": 2, "rows": RowSelection(torch.arange(3))}, "not both"),
        ({"request": StatsRequest(), "columns": "sum"}, "not both"),
        (
            {"masses": one, "row_weights": torch.ones(1, 21)},
            "not requested",
        ),
        ({"masses": one, "per_query_head": True}, "not requested"),
    ):
        with pytest.raises(BadParameterError, match=said):
            attention_stats(q, k, **options)
    with pytest.raises(ShapeError, match=r"row_weights must be \[B or 1, R=2\]"):
        attention_stats(q, k, columns="sum", window=2, row_weights=torch.ones(1, 3))
    with pytest.raises(BadParameterError, match="no gradients"):
        attention_stats(q.requires_grad_(), k, columns="sum")


def test_grouped_heads_in_fp32_take_no_square_matrix_on_cuda(monkeypatch):
    """CUDA's fused kernels share keys in 16 bits only; there the fallback would be L x L."""
    calls = []

    def fused(q, k, v, mask=None, **options):
        calls.append((q.shape[1], k.shape[1], options["enable_gqa"]))
        return torch.empty_like(q)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused)
    with FakeTensorMode():
        for dtype in (torch.float32, torch.bfloat16):
            q = torch.empty(1, 8, 64, 16, dtype=dtype, device="cuda")
            k = torch.empty(1, 2, 64, 16, dtype=dtype, device="cuda")
            attend_torch(q, k, k, AttentionEdit(), mask=None, scaling=1.0, is_causal=True)
    assert calls == [(8, 8, False), (8, 2, True)]


@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("masked", [False, True])
def test_the_last_row_alone_is_that_of_all_rows(backend, masked):
    g = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 6, 5, 16, generator=g), torch.randn(2, 2, 9, 16, generator=g)
    groups = torch.arange(18).view(2, 9).remainder(3).to(torch.uint8)
    request = {"channels": Channels(groups, 3), "entropy": True, "top1": True, "lse": True}
    mask = torch.ones(2, 1, 5, 9, dtype=torch.bool).tril(4)
    mask[0, ..., :3] = False
    options = {"mask": mask if masked else None, "is_causal": True, "backend": backend}
    for row in (3, 4):  # a row before the last one does not see every key
        last = StatsRequest(RowSelection(torch.tensor([row])), **request)
        got = attention_stats(query, key, last, **options)
        want = attention_stats(query, key, StatsRequest(**request), **{**options, "backend": "reference"})
        for name, tensor in got._asdict().items():
            expected = None if tensor is None else getattr(want, name)[:, :, row : row + 1]
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6, msg=name)
