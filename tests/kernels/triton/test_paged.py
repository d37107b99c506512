"""The decode kernel over pages, in Triton's interpreter or on a GPU: what it gives of gathered keys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from kernel_cases import QUICK, check_result, moved, random_like
from paged_cases import LAYOUTS, PAGE_SIZES, PagedCase, make_paged, paged_cases

from regaze.interventions.common.move_mass import MoveMass
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.kernels import (
    AttentionEdit,
    Channels,
    StatsRequest,
    UnmaskRect,
    Windows,
    attend_paged,
    attention_stats_paged,
)
from regaze.kernels.pages import Pages

pytest.importorskip("triton")

from regaze.kernels.triton import decode, launch, tiling
from regaze.kernels.triton.call import Call
from regaze.kernels.triton.decode_operators import DecodeCall

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in branches not taken

#: Each example takes most of a second in the interpreter.
FEW = settings(QUICK, max_examples=200 if CUDA else 8)
MANY = settings(QUICK, max_examples=200 if CUDA else 60)
DECODED = (
    "slope", "gain", "head_score_gain", "bias", "remove", "sink", "move_mass", "scale", "value_gain", "open",
)  # fmt: skip


@pytest.fixture(autouse=True)
def never_gathers(monkeypatch):
    def refuse(*_):
        raise AssertionError("the pages were gathered")

    monkeypatch.setattr(Pages, "gather", refuse)


@FEW
@given(paged_cases(DECODED, in_full=False, longest=40))
def test_pages_within_the_error_budget_of_eager(case: PagedCase):
    check_result(case.whole(), *case.run("triton", DEVICE))


@pytest.mark.slow
@MANY
@given(paged_cases(DECODED, in_full=False, longest=150))
def test_many_longer_pages_within_the_error_budget_of_eager(case: PagedCase):
    check_result(case.whole(), *case.run("triton", DEVICE))


def edited(heads: int, batch: int, queries: int, named: int) -> AttentionEdit:
    """An edit of all kinds of parts, with statistics."""
    g = torch.Generator().manual_seed(heads)
    groups = torch.randint(0, 4, (batch, named), generator=g, dtype=torch.uint8)
    opened = torch.rand(batch, queries, generator=g) > 0.5
    return AttentionEdit(
        bias=random_like(g, batch, heads, named),
        value_gain=1 + random_like(g, 1, heads, named, scale=0.3),
        channels=Channels(groups, 4),
        policy=MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.0, 0.0),
        unmask=(UnmaskRect(opened, torch.rand(batch, named, generator=g) > 0.5),),
        stats=StatsRequest(channels=Channels(groups, 4), entropy=True, top1=True, lse=True),
    )


@pytest.mark.parametrize("page", PAGE_SIZES)
def test_tiles_inside_pages_and_pages_inside_tiles(page):
    """Lengths at, before and after the ends of pages and tiles."""
    g = torch.Generator().manual_seed(page)
    layout = LAYOUTS[page % len(LAYOUTS)]
    case = make_paged(g, page, [64, 33], 1, 7, 2, (32, 32), torch.float32, layout)
    case.edit = edited(7, 2, 2, 30)
    check_result(case.whole(), *case.run("triton", DEVICE))


@pytest.mark.parametrize("page", [5, 32, 128])
def test_windows_skip_pages_and_keep_the_first_keys(page):
    g = torch.Generator().manual_seed(page)
    case = make_paged(g, page, [130, 3, 97], 1, 3, 1, (16, 16), torch.float32, "plain")
    span = torch.tensor([[1, 20, 33]])
    case.edit = AttentionEdit(windows=Windows(span, 3), stats=StatsRequest(entropy=True, lse=True))
    check_result(case.whole(), *case.run("triton", DEVICE))
    # What lies between the first keys and the windows is not even read.
    between = case.table[0, -(-32 // page) : 96 // page]
    for cache in (case.key_cache, case.value_cache):
        cache[between] = torch.nan
    assert case.run("triton", DEVICE)[0].isfinite().all()


def test_a_policy_that_compares_heads():
    g = torch.Generator().manual_seed(3)
    case = make_paged(g, 16, [40, 21], 2, 2, 1, (16, 16), torch.float32, "side by side")
    groups, salient = torch.randint(0, 3, (2, 30), generator=g, dtype=torch.uint8), torch.rand(1, 2, 30)
    gift = AmplifyTopHeads(4, image=1, query=2, salient=3, heads=2)
    case.edit = AttentionEdit(channels=Channels(groups, 3, salient), policy=gift)
    check_result(case.whole(), *case.run("triton", DEVICE))


def test_one_split_finishes_its_rows(monkeypatch):
    chosen = tiling.decode_tiling
    monkeypatch.setattr(
        decode, "decode_tiling", lambda *args, **named: chosen(*args, **named)._replace(num_splits=1)
    )
    g = torch.Generator().manual_seed(4)
    case = make_paged(g, 24, [70, 1], 1, 3, 2, (16, 3), torch.bfloat16, "heads inner")
    case.edit = edited(3, 2, 2, 40)
    check_result(case.whole(), *case.run("triton", DEVICE))


def test_statistics_alone():
    g = torch.Generator().manual_seed(5)
    case = make_paged(g, 16, [40, 21], 1, 3, 1, (16, 16), torch.float32, "plain")
    request = StatsRequest(entropy=True, top1=True, lse=True)
    operands = (x.to(DEVICE) for x in (case.q, case.key_cache, case.table, case.lengths))
    stats = attention_stats_paged(*operands, request, backend="triton")
    case.edit = AttentionEdit(stats=request)
    _, beside = case.run("triton", DEVICE)
    for got, want in zip(stats[1:5], beside[1:5], strict=True):
        assert torch.equal(got, want)


def test_an_edit_used_again_sees_other_tables_and_lengths():
    """The plan of the first call serves the later steps of a generation."""
    g = torch.Generator().manual_seed(6)
    case = make_paged(g, 16, [40, 21], 1, 3, 1, (16, 16), torch.float32, "plain")
    case.edit = AttentionEdit(bias=random_like(g, 2, 3, 20))
    edit = moved(case.edit, DEVICE)
    for _ in range(2):
        operands = (case.q, case.key_cache, case.value_cache, case.table, case.lengths)
        out, _ = attend_paged(*(x.to(DEVICE) for x in operands), edit, backend="triton")
        check_result(case.whole(), out, None)
        case.lengths = (case.lengths - 1).flip(0)
        case.table = case.table.flip(0)
    assert len(edit.backend_cache["triton plans"]) == 1


def test_operators_of_compiled_graphs_read_pages():
    g = torch.Generator().manual_seed(7)
    case = make_paged(g, 16, [40, 21], 1, 3, 2, (16, 16), torch.float32, "plain")
    case.edit = edited(3, 2, 2, 20)
    pages = Pages(case.table.to(DEVICE), case.lengths.to(DEVICE))
    q, k, v = (x.to(DEVICE) for x in (case.q, case.key_cache, case.value_cache))
    call = Call(q, k, v, case.edit, None, 0.25, True, None, None, pages)
    out, stats = DecodeCall(call).run(case.edit.stats)
    check_result(case.whole(), out, stats)


def test_calls_that_other_kernels_run_gather(monkeypatch):
    monkeypatch.undo()
    g = torch.Generator().manual_seed(8)
    case = make_paged(g, 16, [20, 21], 1, 3, 1, (16, 16), torch.float32, "plain")
    after = edited(3, 2, 1, 20).replace(stats=StatsRequest(entropy=True, edited=True))
    case.edit = AttentionEdit(stats=StatsRequest(full_rows=True))
    assert not any(launch.is_decoded(case.q, edit) for edit in (after, case.edit))
    check_result(case.whole(), *case.run("triton", DEVICE))
