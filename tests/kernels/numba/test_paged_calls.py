"""Rows of many sequences over pages in one compiled call, each under an edit of its own."""

from __future__ import annotations

import pytest
import torch

from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import AttentionEdit, Channels, attend
from regaze.kernels.pages import Pages

pytest.importorskip("numba")

from regaze.kernels.numba.launch import program_of
from regaze.kernels.numba.paged import PagedRows, PagedTensors

HEADS, KV_HEADS, DIM, PAGE, NAMED = 6, 2, 8, 5, 13
#: Of each sequence the first of its rows, and how many there are.
ROWS = ((17, 1), (9, 7), (0, 3), (12, 1))


@pytest.fixture(params=["dimensions inner", "keys inner", "heads inner"])
def caches(request):
    g = torch.Generator().manual_seed(4)
    key, value = (torch.randn(18, KV_HEADS, PAGE, DIM, generator=g) for _ in range(2))
    if request.param == "keys inner":
        key = key.mT.contiguous().mT
    if request.param == "heads inner":
        key, value = (cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in (key, value))
    return key, value


@pytest.fixture
def rows():
    """(query, output, table) of all sequences; nobody may read the pages behind a sequence's last."""
    g, total = torch.Generator().manual_seed(5), sum(count for _, count in ROWS)
    table = torch.randperm(18, generator=g).int()[:16].view(len(ROWS), 4)
    for sequence, (place, count) in enumerate(ROWS):
        table[sequence, -(-(place + count) // PAGE) :] = 1 << 30
    query, output = (torch.randn(total, HEADS, DIM, generator=g) for _ in range(2))
    return query, output, table


def moved(tensor: torch.Tensor) -> torch.Tensor:
    """The same at another address, with the same strides."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def edit_of(seed: int) -> AttentionEdit:
    g = torch.Generator().manual_seed(seed)
    one, all_ = torch.rand(1, 1, NAMED, generator=g), torch.rand(1, HEADS, NAMED, generator=g)
    groups = torch.randint(0, 3, (1, NAMED), generator=g, dtype=torch.uint8)
    policy = MoveMass(3, (1,), (2,), (1, 2), 0.8, 0.0, 0.0)
    return (
        AttentionEdit(score_slope=one, bias=all_, head_gain=all_[..., 0].contiguous()),
        AttentionEdit(channels=Channels(groups, 3), policy=policy, value_gain=one),
        AttentionEdit(score_gain=all_, head_score_gain=all_[..., 1].contiguous()),
        AttentionEdit(channels=Channels(groups, 3), policy=policy),
    )[seed]


def cut(edit: AttentionEdit, keys: int) -> AttentionEdit:
    """The edit of a row that sees so many keys."""
    names = ("score_slope", "score_gain", "bias", "value_gain")
    changes = {name: part[..., :keys] for name in names if (part := getattr(edit, name)) is not None}
    if edit.channels is not None and edit.channels.groups is not None:
        changes["channels"] = Channels(edit.channels.groups[:, :keys], edit.channels.num_groups)
    return edit.replace(**changes)


def test_every_row_is_what_its_edit_alone_gives(caches, rows):
    query, output, table = rows
    assert PagedTensors.fit(query, output, *caches, table)
    tensors = PagedTensors(query, output, *caches, table, 0.3)
    calls, start = PagedRows(tensors.layout), 0
    edits = [edit_of(sequence) for sequence in range(len(ROWS))]
    wanted = []
    for sequence, (place, count) in enumerate(ROWS):
        calls.attend(program_of(edits[sequence]), start, count, sequence, place)
        for number in range(count):
            keys = place + number + 1
            pages = Pages(table[sequence : sequence + 1, : -(-keys // PAGE)], torch.tensor([keys]))
            key, value = (pages.gather(cache)[:, :, :keys] for cache in caches)
            row = query[start + number][None, :, None]
            edit = cut(edits[sequence], keys)
            wanted.append(attend(row, key, value, edit, scaling=0.3, backend="reference")[0][0, :, 0])
        start += count
    calls.run(tensors)
    torch.testing.assert_close(output, torch.stack(wanted))
    other = torch.zeros_like(output)  # of another layer, whose tensors are elsewhere
    elsewhere = [moved(each) for each in (query, other, *caches, table)]
    calls.run(PagedTensors(*elsewhere, 0.3))
    assert torch.equal(elsewhere[1], output)


def test_gains_multiply_the_output_that_is_there(caches, rows):
    query, output, table = rows
    before, gain = output.clone(), torch.rand(1, HEADS)
    tensors = PagedTensors(query, output, *caches, table, 0.3)
    calls = PagedRows(tensors.layout)
    calls.gain(program_of(AttentionEdit(head_gain=gain)), 2, 3)
    elsewhere = moved(output)
    calls.run(tensors)
    before[2:5] *= gain[0, :, None]
    torch.testing.assert_close(output, before)
    calls.run(PagedTensors(query, elsewhere, *caches, table, 0.3))
    assert torch.equal(elsewhere, output)


def test_without_rows_nothing_runs(caches, rows):
    query, output, table = rows
    before, tensors = output.clone(), PagedTensors(query, output, *caches, table, 0.3)
    PagedRows(tensors.layout).run(tensors)
    assert torch.equal(output, before)


def test_what_the_kernel_does_not_read(caches, rows):
    query, output, table = rows
    assert not PagedTensors.fit(query.bfloat16(), output, *caches, table)
    assert not PagedTensors.fit(query, output.transpose(0, 1), *caches, table)
    assert not PagedTensors.fit(
        query, output, *(cache.expand(-1, -1, -1, DIM)[..., ::2] for cache in caches), table
    )
    assert not PagedTensors.fit(query, output, *caches, table.long())
