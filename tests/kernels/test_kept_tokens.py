"""Attention of the tokens that are left is that of the whole prompt in which nobody sees the others."""

from __future__ import annotations

import pytest
import torch

from regaze.errors import CompositionError
from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import (
    AttentionEdit,
    Channels,
    HeadSource,
    KeptTokens,
    RowSelection,
    ScoreGate,
    StatsRequest,
    UnmaskRect,
    Windows,
    attend,
    attention_stats,
)

B, H, HKV, L, NEW, D = 3, 6, 2, 17, 3, 8
#: Padding on the left, and what leaves in two stages: samples lose other tokens, and not as many.
PADS = torch.zeros(B, L, dtype=torch.bool)
PADS[1, :4] = True
FIRST, SECOND = torch.zeros(B, L, dtype=torch.bool), torch.zeros(B, L, dtype=torch.bool)
FIRST[0, [2, 3, 5, 8]] = FIRST[1, [6, 9]] = True
SECOND[0, [7]] = SECOND[1, [5, 10]] = SECOND[2, [1, 9]] = True
GONE, SETTLED = FIRST | SECOND, 11


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept_tokens() -> KeptTokens:
    def left(gone: torch.Tensor) -> tuple[int, ...]:
        return tuple((~gone & ~PADS).sum(1).tolist())

    first = KeptTokens.without(FIRST | PADS, left(FIRST), SETTLED, None)
    return KeptTokens.without(GONE | PADS, left(GONE), SETTLED, first)


class Busiest:
    """All heads take the map of the one from which a token receives most."""

    def __call__(self, received, seen):
        assert received.shape == (B, H, L)
        mean = received[:, :, 4] / seen[:, :, 4].clamp_min(1)
        return mean.argmax(1, keepdim=True).expand(-1, H)


def edits(queries: int, named: int) -> dict[str, AttentionEdit]:
    generator = torch.Generator().manual_seed(3)
    groups = torch.randint(0, 4, (B, named), generator=generator, dtype=torch.uint8)
    policy = MoveMass(4, donors=(1, 2), receivers=(3,), gate=(2, 3), moved=0.6, min_share=0.1, min_mass=0.05)
    columns = torch.randint(0, L, (B, 6), generator=generator)
    columns[0, -1] = -1
    active = torch.rand(B, 2, generator=generator) > 0.3
    late = RowSelection(torch.tensor([queries - 2, queries - 1])) if queries > 1 else None
    early = RowSelection(torch.tensor([1, queries - 1]), active) if queries > 1 else None
    opening = UnmaskRect(draw(B, queries, seed=13) > 0, (draw(B, named, seed=5) > 0) & ~_blind(named))
    stats = {"entropy": True, "top1": True, "lse": True}
    return {
        "bias": AttentionEdit(bias=draw(B, H, named, seed=6), rows=late),
        "scores": AttentionEdit(score_slope=draw(1, H, named, seed=7), rows=early),
        "gains": AttentionEdit(
            score_gain=draw(B, 1, named, seed=8), value_gain=draw(1, 1, named, seed=9), rows=early
        ),
        "heads": AttentionEdit(head_gain=draw(B, H, queries, seed=10), head_score_gain=draw(B, H, seed=2)),
        "sinks": AttentionEdit(sink=draw(B, H, queries, seed=15), stats=StatsRequest(lse=True, edited=True)),
        "spread": AttentionEdit(bias=draw(B, H, named, seed=6), spread=draw(B, named, seed=12) > 0),
        "gate": AttentionEdit(
            score_gate=ScoreGate((draw(B, named, seed=5) > 0) & ~_blind(named), 3, 0.2, draw(B, queries) > 0)
        ),
        "policy": AttentionEdit(channels=Channels(groups, 4), policy=policy, rows=early),
        "weights": AttentionEdit(
            stats=StatsRequest(channels=Channels(groups, 4, draw(2, B, named, seed=11).abs()), **stats)
        ),
        "heads of others": AttentionEdit(
            head_source=HeadSource(rule=Busiest(), rows=~PADS & ~GONE)
            if queries > 1
            else HeadSource(torch.tensor([[1, 1, 0, 4, 4, 5]]))
        ),
        "opening": AttentionEdit(unmask=(opening,)),
        "slices": AttentionEdit(stats=StatsRequest(rows=early, columns=columns, **stats)),
        "late slices": AttentionEdit(stats=StatsRequest(rows=late, columns=columns[:1], **stats)),
        "whole rows": AttentionEdit(stats=StatsRequest(rows=early, full_rows=True)),
        "edited rows": AttentionEdit(
            bias=draw(B, 1, named, seed=6), stats=StatsRequest(rows=late, full_rows=True, edited=True)
        ),
    }


def _blind(named: int) -> torch.Tensor:
    return torch.nn.functional.pad(GONE | PADS, (0, named))[:, :named]


@pytest.mark.parametrize("name", edits(L, L))
@pytest.mark.parametrize("decode", [False, True], ids=["prompt", "decode"])
@pytest.mark.parametrize("kind", ["bool", "added"])
def test_edits_and_statistics_keep_the_numbers_of_the_prompt(name, decode, kind):
    kept, keys = kept_tokens(), L + (NEW if decode else 0)
    assert kept.count == 15  # of the sample that keeps most; the others fill up
    queries = 1 if decode else L
    edit = edits(queries, keys if decode else L - 2)[name]
    query, key, value = draw(B, H, queries, D), draw(B, HKV, keys, D, seed=1), draw(B, HKV, keys, D, seed=2)
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) & ~_blind(keys)[:, None, None]
    plain = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    plain = plain & ~torch.nn.functional.pad(PADS, (0, keys - L))[:, None, None]
    if kind == "added":
        seen, plain = (torch.zeros(m.shape).masked_fill(~m, torch.finfo().min) for m in (seen, plain))
    want, stats = attend(query, key, value, edit, mask=seen)

    numbering = kept.answer if decode else kept.prompt
    key, value = (torch.cat([kept.select(part[:, :, :L], 2), part[:, :, L:]], 2) for part in (key, value))
    query = query if decode else kept.select(query, 2)
    own = numbering.edit(edit)
    assert numbering.edit(edit) is own
    mask = numbering.mask(plain, query.shape[2], key.shape[2])
    got, found = attend(query, key, value, own, mask=mask)
    there = torch.ones(B, 1, dtype=torch.bool) if decode else ~GONE & ~PADS
    got = got if decode else kept.expand(got, 2)
    _close_where(there, got, want)
    if edit.stats is None:
        return
    found = numbering.stats(found, edit.stats)
    there = there if edit.stats.rows is None else there[:, edit.stats.rows.index]
    for name, part in found._asdict().items():
        other = getattr(stats, name)
        assert (part is None) == (other is None)
        if other is not None:
            _close_where(there, part, other)
            assert not part.masked_select(~_at_rows(there, part)).any()


def _at_rows(there: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Flags [B, R] for a tensor [B, Hq, R, ...]."""
    return there.view(B, 1, -1, *[1] * (part.dim() - 3)).expand_as(part)


def _close_where(there: torch.Tensor, got: torch.Tensor, want: torch.Tensor) -> None:
    there = _at_rows(there, want)
    torch.testing.assert_close(got[there], want[there], rtol=1e-5, atol=1e-5)


def test_without_a_mask_only_what_fills_up_needs_one():
    full = KeptTokens.without(FIRST[:1], (13,), 9, None)
    assert full.columns.tolist() == [[0, 1, 4, 6, 7, *range(9, 17)]]
    assert full.prompt.mask(None, 13, 13) is None
    assert full.answer.mask(None, 1, 15) is None
    pair = KeptTokens.without(FIRST[:2], (13, 15), 10, None)
    assert pair.count == 15
    hidden = torch.nn.functional.one_hot(torch.tensor([2, 3]), 15).sum(0).bool()
    assert pair.columns[0].tolist() == [0, 1, 2, 3, 4, 6, 7, *range(9, 17)]
    assert pair.hidden.tolist() == [hidden.tolist(), [False] * 15]
    mask = pair.prompt.mask(None, 15, 15)
    assert torch.equal(mask[1, 0], torch.ones(15, 15).tril().bool())
    assert torch.equal(mask[0, 0], torch.ones(15, 15).tril().bool() & ~hidden)
    assert pair.answer.mask(None, 1, 17)[0, 0, 0].tolist() == (~hidden).tolist() + [True] * 2


def test_rows_are_put_back_and_those_that_left_are_zero():
    kept, hidden = kept_tokens(), draw(B, L, D)
    back = kept.expand(kept.select(hidden))
    there = (kept.places >= 0) & ~(GONE | PADS)
    assert torch.equal(back, hidden * there[..., None])
    weights = draw(B, H, 1, kept.count + 2).softmax(-1)
    whole = kept.answer.weights(weights)
    assert whole.shape == (B, H, 1, L + 2)
    torch.testing.assert_close(whole.sum(-1), torch.ones(B, H, 1))
    assert torch.equal(whole[..., L:], weights[..., kept.count :])


def test_rows_of_a_batch_that_go_on_in_another_order():
    kept, rows = kept_tokens(), torch.tensor([2, 0, 0])
    moved = kept.reordered(rows)
    assert torch.equal(moved.columns, kept.columns[rows])
    assert torch.equal(moved.hidden, kept.hidden[rows])


def test_windows_have_no_meaning_among_tokens_that_are_left():
    edit = AttentionEdit(windows=Windows(torch.tensor([[3] * H])))
    with pytest.raises(CompositionError, match="windows count how many keys lie between"):
        kept_tokens().prompt.edit(edit)


def test_a_request_by_itself_is_as_that_of_an_edit():
    kept, request = kept_tokens(), StatsRequest(columns=torch.tensor([[3, 12, 18, -1]]))
    own = kept.answer.request(request)
    assert own.columns.tolist() == [[-1, 10, 16, -1], [-1, 10, 16, -1], [2, 10, 16, -1]]
    stats = attention_stats(draw(B, H, 1, D), draw(B, HKV, 18, D), own)
    assert torch.equal(stats.slices[0, :, 0, [0, 3]], torch.zeros(H, 2))
