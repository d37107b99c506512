"""Attention over pages against gathered keys: every backend that gathers, and what it raises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from kernel_cases import PARTS, QUICK, check_result, check_stats, stats_dict
from paged_cases import LAYOUTS, PagedCase, make_paged, paged_cases

from regaze.errors import BadParameterError, ShapeError
from regaze.kernels import (
    AttentionEdit,
    Channels,
    StatsRequest,
    Windows,
    attend,
    attend_paged,
    attention_stats_paged,
)
from regaze.kernels.pages import Pages


def small(layout: str = "plain", lengths=(7, 0, 12), queries: int = 2) -> PagedCase:
    g = torch.Generator().manual_seed(len(layout))
    return make_paged(g, 5, list(lengths), 2, 3, queries, (16, 16), torch.float32, layout)


@QUICK
@given(paged_cases(PARTS, in_full=True, dtypes=(torch.float32,)))
def test_paged_attention_is_attention_over_the_gathered_keys(case: PagedCase):
    check_result(case.whole(), *case.run("torch"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_a_matter_of_strides(layout):
    case = small(layout)
    key, value = (cache.contiguous() for cache in (case.key_cache, case.value_cache))
    want = replace(case, key_cache=key, value_cache=value)
    assert torch.equal(case.run("torch")[0], want.run("torch")[0])
    assert layout == "plain" or not case.key_cache.is_contiguous()


def test_gathered_pages_hold_zeros_where_no_key_belongs():
    case = small()
    key = Pages(case.table, case.lengths).gather(case.key_cache)
    assert torch.equal(key, case.whole().k)
    assert not key[1].any()


def test_what_other_sequences_and_unused_room_hold_changes_nothing():
    case = small(lengths=(7, 9))
    alone = small(lengths=(7, 9))
    first = int(case.table[0, 0])
    others = torch.arange(len(case.key_cache)) != first
    others[case.table[0, 1]] = False
    for cache in (alone.key_cache, alone.value_cache):
        cache[others] = 5.0
        cache[case.table[0, 1], :, 2:] = -7.0
    assert torch.equal(case.run("torch")[0][0], alone.run("torch")[0][0])


def test_a_row_before_the_first_key_gives_zeros():
    case = small(lengths=(1, 3), queries=3)
    out, _ = case.run("torch")
    assert not out[0, :, :2].any()
    assert out[0, :, 2].any(dim=-1).all()
    assert out[1].any(dim=-1).all()


def test_windows_look_back_from_the_end_of_each_sequence():
    case = small(lengths=(7, 12), queries=1)
    case.edit = AttentionEdit(windows=Windows(torch.full((1, 6), 3)), stats=StatsRequest(full_rows=True))
    _, stats = case.run("torch")
    seen = stats.slices[:, :, 0] > 0
    assert [row.nonzero().flatten().tolist() for row in seen[:, 0]] == [[4, 5, 6], [9, 10, 11]]


def test_statistics_alone_are_those_beside_an_output():
    case = small()
    channels = Channels(torch.tensor([[0, 1, 2, 1]], dtype=torch.uint8), 3)
    request = StatsRequest(channels=channels, entropy=True, top1=True, lse=True, full_rows=True)
    stats = attention_stats_paged(case.q, case.key_cache, case.table, case.lengths, request)
    whole = case.whole()
    whole.edit = AttentionEdit(stats=request)
    exact, single = (c.call(attend, backend="reference")[1] for c in (whole.doubled(), whole))
    check_stats(stats_dict(stats), stats_dict(exact), stats_dict(single), whole)


def test_no_samples_rows_or_pages_give_empty_results():
    case = small()
    nothing = torch.empty(3, 0, dtype=torch.int32)
    out, stats = attend_paged(
        case.q, case.key_cache, case.value_cache, nothing, torch.zeros(3, dtype=torch.int64),
        AttentionEdit(stats=StatsRequest(entropy=True, lse=True)),
    )  # fmt: skip
    assert not out.any()
    assert out.shape == (3, 6, 2, 16)
    assert torch.all(stats.lse == -torch.inf)
    none = attend_paged(case.q[:0], case.key_cache, case.value_cache, case.table[:0], case.lengths[:0])[0]
    assert none.shape == (0, 6, 2, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(3, 6, 16)}, r"query must be \[B, Hq, Lq, D\]"),
        ({"q": torch.zeros(3, 6, 2, 8)}, r"disagree: query is \[3, 6, 2, 8\] float32"),
        ({"q": torch.zeros(3, 5, 2, 16)}, "Hq=5 is not a multiple of Hkv=2"),
        ({"table": torch.zeros(3, 3)}, r"block_table must be \[B=3, n\]"),
        ({"table": torch.zeros(2, 3, dtype=torch.int32)}, r"block_table is \[2, 3\] int32"),
        ({"lengths": torch.zeros(4, dtype=torch.int32)}, r"lengths is \[4\] int32"),
        ({"lengths": torch.tensor([7, -1, 16])}, "they are -1 to 16"),
        ({"lengths": torch.tensor([7, 0, 99])}, "lengths must be 0 to"),
        ({"table": torch.full((3, 3), 77)}, "names pages 77 to 77 within the lengths"),
        ({"edit": AttentionEdit(bias=torch.zeros(1, 1, 999))}, "bias is"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    case = small()
    for name, value in changes.items():
        setattr(case, name, value)
    with pytest.raises(ShapeError, match=message):
        case.run("torch")


def test_options_are_checked_and_backends_named():
    case = small()
    case.softcap = -1.0
    with pytest.raises(BadParameterError, match="softcap must be positive"):
        case.run("torch")
    case.softcap = None
    with pytest.raises(BadParameterError, match="unknown attention backend 'fast'"):
        case.run("fast")
