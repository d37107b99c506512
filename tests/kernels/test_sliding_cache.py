"""Keys that a sliding window has dropped are keys that nobody may see: the numbers of columns stay."""

from __future__ import annotations

import pytest
import torch

from regaze.errors import ShapeError
from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import (
    AttentionEdit,
    Channels,
    RowSelection,
    StatsRequest,
    UnmaskRect,
    Windows,
    attend,
    attention_stats,
)

B, H, HKV, LK, D = 2, 6, 2, 19, 8


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edits(queries: int, named: int) -> dict[str, AttentionEdit]:
    groups = torch.randint(0, 4, (B, named), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    policy = MoveMass(4, donors=(1, 2), receivers=(3,), gate=(2, 3), moved=0.6, min_share=0.1, min_mass=0.05)
    columns = torch.randint(0, LK, (B, 5), generator=torch.Generator().manual_seed(4))
    columns[0, -1] = -1
    opening = UnmaskRect(torch.ones(1, queries, dtype=torch.bool), draw(B, named, seed=5) > 0)
    stats = {"entropy": True, "top1": True, "lse": True}
    return {
        "bias": AttentionEdit(bias=draw(B, H, named, seed=6), stats=StatsRequest(**stats, edited=True)),
        "scores": AttentionEdit(score_slope=draw(1, H, named, seed=7), score_gain=draw(B, 1, named, seed=8)),
        "values": AttentionEdit(value_gain=draw(B, H, named, seed=9), head_gain=draw(B, H, seed=10)),
        "spread": AttentionEdit(bias=draw(B, H, named, seed=6), spread=draw(B, named, seed=12) > 0),
        "policy": AttentionEdit(
            channels=Channels(groups, 4), policy=policy, stats=StatsRequest(channels=Channels(groups, 4))
        ),
        "opening": AttentionEdit(unmask=(opening,)),
        "windows": AttentionEdit(windows=Windows(torch.tensor([[3, 30, 5, 2, 9, 1]]), sink=8)),
        "padded windows": AttentionEdit(
            windows=Windows(torch.tensor([[3, 30, 5, 2, 9, 1]]), sink=4, first=torch.tensor([2, 5]))
        ),
        "slices": AttentionEdit(stats=StatsRequest(columns=columns, **stats)),
        "full rows": AttentionEdit(
            stats=StatsRequest(RowSelection(torch.tensor([queries - 1])), full_rows=True)
        ),
        "weights": AttentionEdit(
            stats=StatsRequest(channels=Channels(weights=draw(3, B, named, seed=11).abs()))
        ),
    }


def _naming(*where: str):
    return lambda message: f"{' '.join(where)}: {message}"


QUICK = [
    (b, *case) for b in ("reference", "torch") for case in ((1, 0, 12), (1, 7, 4), (1, 7, 12), (3, 7, 12))
]
SLOW = [pytest.param("triton", 1, 7, named, marks=pytest.mark.slow) for named in (4, 12)]


@pytest.mark.parametrize(("backend", "queries", "dropped", "named"), QUICK + SLOW)
def test_dropped_keys_are_hidden_keys(backend, queries, dropped, named):
    q, k, v = draw(B, H, queries, D), draw(B, HKV, LK, D, seed=1), draw(B, HKV, LK, D, seed=2)
    causal = torch.ones(queries, LK, dtype=torch.bool).tril(LK - queries)
    hidden = causal & (torch.arange(LK) >= dropped)
    for name, edit in edits(queries, named).items():
        if name == "opening":  # would open what is gone
            keep = torch.arange(named) >= dropped
            whole = edit.replace(unmask=tuple(UnmaskRect(o.rows, o.columns & keep) for o in edit.unmask))
        else:
            whole = edit
        expected, want = attend(q, k, v, whole, mask=hidden.expand(B, 1, -1, -1), backend="reference")
        mask = causal[:, dropped:].expand(B, 1, -1, -1)
        options = {"mask": mask, "first_key": dropped, "backend": backend}
        for _ in range(2):  # the second time with what the edit has kept
            out, stats = attend(q, k[:, :, dropped:], v[:, :, dropped:], edit, **options)
            torch.testing.assert_close(
                out, expected, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )
        if want is None:
            continue
        if not edit.stats.edited:
            stats = attention_stats(q, k[:, :, dropped:], edit.stats, **options)
        for part, found, wanted in zip(want._fields, stats, want, strict=True):
            assert (found is None) == (wanted is None), (name, part)
            if found is not None:
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=_naming(name, part))


def test_the_same_edit_serves_every_step():
    """As a window moves on, what was kept for the step before is not used again."""
    edit = AttentionEdit(bias=draw(1, H, 6))
    q, k, v = draw(1, H, 1, D), draw(1, HKV, LK, D, seed=1), draw(1, HKV, LK, D, seed=2)
    for first in (0, 3, 4, 3, 15, 0):
        window = slice(first, min(LK, first + 6))
        out, _ = attend(q, k[:, :, window], v[:, :, window], edit, first_key=first)
        mask = torch.zeros(1, 1, 1, LK, dtype=torch.bool)
        mask[..., window] = True
        expected, _ = attend(q, k, v, edit, mask=mask)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_columns_behind_the_keys_are_refused():
    q, k = draw(1, H, 1, D), draw(1, HKV, 6, D)
    with pytest.raises(ShapeError, match="n <= Lk"):
        attend(q, k, k, AttentionEdit(bias=draw(1, H, 12)), first_key=5)
