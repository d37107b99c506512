"""Windows of an edit: what each head sees, on every backend, at prefill and at decode."""

from __future__ import annotations

import pytest
import torch

from regaze.errors import BadParameterError, CompositionError, ShapeError
from regaze.kernels import AttentionEdit, RowSelection, StatsRequest, UnmaskRect, attend, compose
from regaze.kernels.spec import Windows

BACKENDS = ("reference", "torch")


def tensors(batch=2, heads=6, kv_heads=2, queries=11, keys=11, dim=8):
    torch.manual_seed(queries * 100 + keys)
    return (torch.randn(batch, h, n, dim) for h, n in ((heads, queries), (kv_heads, keys), (kv_heads, keys)))


def causal(queries: int, keys: int) -> torch.Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]


def sees(windows: Windows, visible: torch.Tensor, own: list[int], batch: int, heads: int) -> torch.Tensor:
    """[B, Hq, Lq, Lk] by the definition, one key at a time."""
    visible = visible.expand(batch, heads, *visible.shape[2:]).clone()
    for b, h, i, j in torch.cartesian_prod(*(torch.arange(n) for n in visible.shape)).tolist():
        span = int(windows.span[b % len(windows.span), h])
        start = 0 if windows.first is None else int(windows.first[b])
        visible[b, h, i, j] &= own[i] - j < span or j - start < windows.sink
    return visible


def check(windows: Windows, q, k, v, expected: torch.Tensor, **call) -> None:
    plain = attend(q, k, v, mask=expected, backend="reference")[0]
    for backend in BACKENDS:
        out = attend(q, k, v, AttentionEdit(windows=windows), backend=backend, **call)[0]
        torch.testing.assert_close(out, plain, rtol=0, atol=2e-6)


SPANS = torch.tensor([[1, 2, 3, 5, 11, 40], [4, 4, 1, 9, 2, 7]])


@pytest.mark.parametrize("span", [SPANS, SPANS[:1]], ids=["per sample", "shared"])
@pytest.mark.parametrize("sink", [0, 2])
def test_prefill_without_a_mask(span, sink):
    q, k, v = tensors()
    windows = Windows(span, sink)
    check(windows, q, k, v, sees(windows, causal(11, 11), list(range(11)), 2, 6), is_causal=True)


@pytest.mark.parametrize("queries", [1, 3])
def test_rows_that_follow_a_cache(queries):
    q, k, v = tensors(queries=queries, keys=13)
    windows = Windows(SPANS, 2)
    own = list(range(13 - queries, 13))
    expected = sees(windows, causal(queries, 13), own, 2, 6)
    check(windows, q, k, v, expected, is_causal=True)
    check(windows, q, k, v, expected, mask=causal(queries, 13))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_left_padding_counts_from_the_first_token(dtype):
    q, k, v = tensors()
    first = torch.tensor([0, 4])
    windows = Windows(SPANS, 2, first)
    visible = causal(11, 11) & (torch.arange(11) >= first[:, None])[:, None, None]
    mask = visible if dtype == torch.bool else torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    check(windows, q, k, v, sees(windows, visible, list(range(11)), 2, 6), mask=mask)


@pytest.mark.parametrize("queries", [1, 4])
def test_a_static_cache_is_longer_than_what_it_holds(queries):
    q, k, v = tensors(queries=queries, keys=19)
    visible = torch.zeros(1, 1, queries, 19, dtype=torch.bool)
    visible[..., :11] = causal(queries, 11)
    windows = Windows(SPANS, 1)
    check(windows, q, k, v, sees(windows, visible, list(range(11 - queries, 11)), 2, 6), mask=visible)


def test_wide_windows_change_nothing():
    q, k, v = tensors()
    plain = attend(q, k, v, is_causal=True, backend="reference")[0]
    edit = AttentionEdit(windows=Windows(torch.full((1, 6), 2**62)))
    assert torch.equal(attend(q, k, v, edit, is_causal=True, backend="reference")[0], plain)


def test_openings_past_the_own_key_stay_open_and_others_do_not():
    """A window closes what an opening shows behind it, not what it shows ahead."""
    rows, columns = torch.zeros(2, 11, dtype=torch.bool), torch.zeros(2, 11, dtype=torch.bool)
    rows[:, 5], columns[:, [1, 9]] = True, True
    windows = Windows(torch.full((1, 6), 3))
    expected = sees(windows, causal(11, 11), list(range(11)), 2, 6)
    expected[:, :, 5, 9] = True
    q, k, v = tensors()
    plain = attend(q, k, v, mask=expected, backend="reference")[0]
    for backend in BACKENDS:
        edit = AttentionEdit(windows=windows, unmask=(UnmaskRect(rows, columns),))
        out = attend(q, k, v, edit, is_causal=True, backend=backend)[0]
        torch.testing.assert_close(out, plain, rtol=0, atol=2e-6)


def test_they_act_on_all_rows_beside_an_edit_of_some(monkeypatch):
    q, k, v = tensors()
    windows, bias = Windows(SPANS, 1), torch.randn(2, 1, 11)
    rows = RowSelection(torch.tensor([3, 7]), torch.tensor([[True, True], [False, True]]))
    mask = sees(windows, causal(11, 11), list(range(11)), 2, 6)
    request = StatsRequest(entropy=True, full_rows=True, edited=True)
    expected = attend(q, k, v, AttentionEdit(rows, bias=bias, stats=request), mask=mask, backend="reference")
    edit = AttentionEdit(rows, bias=bias, windows=windows, stats=request)
    monkeypatch.setattr("regaze.kernels.torch_backend.CPU_BLOCK_ELEMENTS", 400)  # several blocks
    for backend in BACKENDS:
        out, stats = attend(q, k, v, edit, is_causal=True, backend=backend)
        torch.testing.assert_close(out, expected[0], rtol=0, atol=2e-6)
        torch.testing.assert_close(stats.slices, expected[1].slices, rtol=0, atol=2e-6)
        torch.testing.assert_close(stats.entropy, expected[1].entropy, rtol=0, atol=2e-6)


def test_composition():
    windows = AttentionEdit(windows=Windows(SPANS))
    both = compose([AttentionEdit(bias=torch.zeros(1, 1, 3)), windows])
    assert both.windows is windows.windows
    with pytest.raises(CompositionError, match="two interventions set `windows`"):
        compose([windows, windows])


def test_what_is_refused():
    with pytest.raises(ShapeError, match=r"span must be \[B or 1, Hq\] int64, got \[6\] int64"):
        Windows(SPANS[0])
    with pytest.raises(ShapeError, match=r"Windows\.first must be"):
        Windows(SPANS, first=torch.zeros(2))
    with pytest.raises(BadParameterError, match="sink must not be negative"):
        Windows(SPANS, sink=-1)
    q, k, v = tensors()
    with pytest.raises(ShapeError, match=r"Windows\.span is \[2, 5\] int64"):
        attend(q, k, v, AttentionEdit(windows=Windows(SPANS[:, :5])))
    with pytest.raises(ShapeError, match=r"Windows\.first is \[3\] int64"):
        attend(q, k, v, AttentionEdit(windows=Windows(SPANS, first=torch.zeros(3, dtype=torch.int64))))
