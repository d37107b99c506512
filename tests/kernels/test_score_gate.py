"""Gated heads: sums of scores before the softmax, by a product with the summed keys, and what they do."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
import torch
from kernel_cases import moved, random_like

from regaze.errors import BadParameterError, CompositionError, ShapeError
from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import AttentionEdit, Channels, ScoreGate, StatsRequest, attend, compose
from regaze.kernels.score_gate import score_sums

BACKENDS = ["reference", "torch"] + ["triton"] * (find_spec("triton") is not None)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in branches not taken


def call(backend, q, k, v, edit, **options):
    there = [moved(each, DEVICE) for each in (q, k, v)]
    edit = edit.to(torch.device(DEVICE))
    out, stats = attend(
        *there, edit, backend=backend, **{name: moved(x, DEVICE) for name, x in options.items()}
    )
    return out.cpu(), stats


def tensors(queries: int, keys: int = 13, dtype=torch.float32):
    g = torch.Generator().manual_seed(queries)
    q, k, v = random_like(g, 2, 6, queries, 16), *(random_like(g, 2, 2, keys, 16) for _ in range(2))
    return [x.to(dtype) for x in (q, k, v)], g


def test_heads_by_hand():
    """SPIN's example: sums 1.5, 1.0, 0.3 and -1.0; attention on the image would keep heads 1 and 3."""
    scores = torch.tensor([[1.0, 0.5, 0.0], [-2.0, 3.0, 0.0], [0.2, 0.1, 0.0], [2.0, -3.0, 0.0]])
    gate = ScoreGate(torch.tensor([[True, True]]), kept=2, factor=0.08)
    q, k = scores[None, :, None], torch.eye(3).expand(1, 4, 3, 3)
    sums = score_sums(q, k, gate.columns, 1.0)
    torch.testing.assert_close(sums[0, :, 0], torch.tensor([1.5, 1.0, 0.3, -1.0]))
    assert gate.gains(sums)[0, :, 0].tolist() == pytest.approx([1.0, 1.0, 0.08, 0.08])
    nothing = ScoreGate(torch.tensor([[False, False]]), kept=2, factor=0.08)
    assert (nothing.gains_of(q, k, 1.0) == 1).all()


@pytest.mark.parametrize("kind", ["causal", "mask", "soft cap"])
@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_kept_heads_keep_their_bits_and_the_others_are_scaled(backend, queries, kind):
    """In the rows that it acts in; mask, soft cap and the rest of the edit have no part in the sums."""
    (q, k, v), g = tensors(queries)
    options = {"is_causal": True}
    if kind == "mask":
        options["mask"] = torch.rand(2, 1, queries, 13, generator=g) > 0.3
    if kind == "soft cap":
        options["softcap"] = 2.0
    columns = torch.rand(2, 9, generator=g) > 0.5
    rows = torch.arange(queries)[None].expand(2, -1) % 2 == 0
    gate = ScoreGate(columns, kept=4, factor=0.125, rows=rows)
    groups = Channels(torch.randint(0, 3, (2, 13), generator=g, dtype=torch.uint8), 3)
    policy = MoveMass(3, (1,), (2,), (1, 2), 0.6, 0.0, 0.0)
    others = AttentionEdit(bias=random_like(g, 1, 1, 5), channels=groups, policy=policy)
    scores = q.double() @ k.double().repeat_interleave(3, 1).mT * 0.25
    sums = (scores[..., :9] * columns[:, None, None]).sum(-1)
    damped = (sums.argsort(1).argsort(1) < 2) & rows[:, None]
    assert damped.any(1).equal(rows)
    for edit in (AttentionEdit(), others):
        plain, _ = call(backend, q, k, v, edit, **options)
        got, _ = call(backend, q, k, v, edit.replace(score_gate=gate), **options)
        want = torch.where(damped[..., None], plain * 0.125, plain)
        assert torch.equal(got, want) if backend != "reference" else torch.allclose(got, want, atol=1e-6)


def test_what_is_recorded_is_not_changed():
    (q, k, v), _ = tensors(3)
    gate = ScoreGate(torch.ones(1, 5, dtype=torch.bool), kept=1, factor=0.0)
    for backend in BACKENDS:
        for edited in (False, True):
            request = StatsRequest(lse=True, full_rows=True, edited=edited)
            stats = call(backend, q, k, v, AttentionEdit(score_gate=gate, stats=request))[1]
            want = call(backend, q, k, v, AttentionEdit(stats=request))[1]
            assert torch.equal(stats.slices, want.slices)
            assert torch.equal(stats.lse, want.lse)


def test_columns_that_a_sliding_cache_has_dropped_count_no_more():
    (q, k, v), _ = tensors(1)
    gate = ScoreGate(torch.ones(1, 6, dtype=torch.bool), kept=3, factor=0.5)
    got, _ = attend(q, k[:, :, 4:], v[:, :, 4:], AttentionEdit(score_gate=gate), first_key=4)
    rest = ScoreGate(torch.arange(6)[None] >= 4, kept=3, factor=0.5)
    hidden = (torch.arange(13) >= 4)[None, None, None]
    want, _ = attend(q, k, v, AttentionEdit(score_gate=rest), mask=hidden)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("make", "error", "what"),
    [
        (
            lambda: ScoreGate(torch.ones(1, 2), 1, 0.5),
            ShapeError,
            "ScoreGate.columns must be [B or 1, n] bool",
        ),
        (
            lambda: ScoreGate(torch.ones(1, 2).bool(), 1, 0.5, torch.ones(2).bool()),
            ShapeError,
            "ScoreGate.rows must be [B or 1, Lq] bool",
        ),
        (lambda: ScoreGate(torch.ones(1, 2).bool(), -1, 0.5), BadParameterError, "not be negative, got -1"),
        (lambda: fitted(torch.ones(1, 14).bool()), ShapeError, "ScoreGate.columns is [1, 14]"),
        (
            lambda: fitted(torch.ones(1, 4).bool(), torch.ones(1, 4).bool()),
            ShapeError,
            "ScoreGate.rows is [1, 4]",
        ),
        (
            lambda: compose([AttentionEdit(score_gate=ScoreGate(torch.ones(1, 2).bool(), 1, 0.5))] * 2),
            CompositionError,
            "two interventions set `score_gate`",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, error, what):
    with pytest.raises(error, match=re.escape(what)):
        make()


def fitted(columns, rows=None):
    (q, k, v), _ = tensors(3)
    return attend(q, k, v, AttentionEdit(score_gate=ScoreGate(columns, 1, 0.5, rows)))
