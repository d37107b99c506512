"""Numbers at the edge of a dtype's range: finite wherever the specification in fp64 is, in every backend."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import random_like

from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import AttentionEdit, Channels, RowSelection, StatsRequest, attend
from regaze.kernels.backends import BACKENDS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in Triton's interpreter
QUERIES = pytest.mark.parametrize("queries", [1, 20])  # Triton's kernels for decoding and for a prefill
BACKEND = pytest.mark.parametrize("backend", list(BACKENDS))


def tensors(queries: int, keys: int, size: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    q, k, v = random_like(g, 1, 4, queries, 16), *(random_like(g, 1, 2, keys, 16) for _ in range(2))
    return [(q * size).half(), (k * size).half(), v.half()]


def check(backend: str, q, k, v, edit: AttentionEdit, atol: float = 2e-3, **options) -> None:
    out, stats = attend(q, k, v, edit, backend=backend, **options)
    exact, exact_stats = attend(q.double(), k.double(), v.double(), edit, backend="reference", **options)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), exact, rtol=2e-3, atol=atol)
    if edit.stats is not None:
        torch.testing.assert_close(stats.lse, exact_stats.lse, rtol=1e-5, atol=0)


@BACKEND
@QUERIES
def test_scores_beyond_fp16_give_finite_edited_rows(backend, queries):
    q, k, v = tensors(queries, 70, size=300.0)
    assert ((q.float() @ k.float().repeat_interleave(2, 1).mT) / 4).abs().max() > 65504
    rows = RowSelection(torch.arange(queries)[::2])
    for edit in (
        AttentionEdit(rows=rows, bias=torch.ones(1, 1, 3), stats=StatsRequest(lse=True)),
        AttentionEdit(value_gain=torch.full((1, 1, 70), 0.5), stats=StatsRequest(lse=True, edited=True)),
    ):
        check(backend, q, k, v, edit, is_causal=True)


@BACKEND
def test_one_score_beyond_fp16_is_as_in_sdpa(backend):
    q, k, v = (torch.full((1, 1, 1, 16), 300.0).half() for _ in range(3))
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attend(q, k, v, AttentionEdit(bias=torch.zeros(1, 1, 1)), backend=backend)[0], plain)


@BACKEND
@QUERIES
def test_a_policy_may_multiply_weights_by_more_than_fp16_holds(backend, queries):
    """The receivers come in the first block of keys and hold a mass of about 1e-7: their factor is 1e6."""
    _, _, v = tensors(queries, 200)
    q, k = torch.ones(1, 4, queries, 16).half(), torch.zeros(1, 2, 200, 16).half()
    k[:, :, 64:] = 4.0
    groups = torch.full((1, 200), 1, dtype=torch.uint8)
    groups[:, :64] = 2
    policy = MoveMass(3, (1,), (2,), (1, 2), 0.6, 0.0, 0.0)
    check(backend, q, k, v, AttentionEdit(channels=Channels(groups, 3), policy=policy))


@BACKEND
@QUERIES
def test_gains_may_be_more_than_fp16_holds(backend, queries):
    q, k, v = tensors(queries, 70)
    down = torch.full((1, 4), 1e-4)
    check(backend, q, k, v, AttentionEdit(value_gain=torch.full((1, 1, 70), 1e5), head_gain=down), atol=2e-2)
    check(backend, q, k, v / 64, AttentionEdit(head_gain=torch.full((1, 4), 1e5)), atol=2.0)


@BACKEND
@QUERIES
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_row_that_sees_nothing_beside_an_empty_sink_is_zero(backend, queries, dtype):
    q, k, v = (x.to(dtype) for x in tensors(queries, 7))
    nothing = torch.zeros(1, 1, queries, 7, dtype=torch.bool)
    edit = AttentionEdit(bias=torch.ones(1, 1, 3), stats=StatsRequest(lse=True))
    out, stats = attend(
        q, k, v, edit, mask=nothing, sinks=torch.full((4,), -torch.inf).to(dtype), backend=backend
    )
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(stats.lse, torch.full((1, 4, queries), -torch.inf))
