"""A prompt in pieces gives what it gives as a whole, whatever its edit."""

from __future__ import annotations

import itertools

import pytest
import torch

from regaze.errors import CompositionError
from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import (
    AttentionEdit,
    Channels,
    HeadSource,
    RowSelection,
    ScoreGate,
    StatsRequest,
    UnmaskRect,
    Windows,
    attend,
)
from regaze.serving.worker.chunks import chunk, divided
from regaze.serving.worker.requests import joined

HEADS, LENGTH, SIZE = 6, 13, 8


def edits() -> dict[str, AttentionEdit]:
    g = torch.Generator().manual_seed(3)
    columns = torch.rand(1, HEADS, LENGTH, generator=g)
    rows = RowSelection(torch.tensor([2, 5, 6, 11]))
    groups = torch.randint(0, 4, (1, LENGTH), generator=g, dtype=torch.uint8)
    policy = MoveMass(4, (1, 2), (3,), (2, 3), 0.7, 0.1, 0.05)
    opened = torch.zeros(1, LENGTH, dtype=torch.bool)
    opened[:, :3] = True
    return {
        "slopes of all rows": AttentionEdit(score_slope=columns, head_mean_slope=0.3 * columns),
        "bias of some rows": AttentionEdit(rows=rows, bias=4 * columns),
        "gains of the last row": AttentionEdit(rows=RowSelection(torch.tensor([12])), score_gain=3 * columns),
        "value gain": AttentionEdit(rows=rows, value_gain=columns),
        "policy": AttentionEdit(rows=rows, channels=Channels(groups, 4), policy=policy),
        "spread": AttentionEdit(spread=groups > 1, bias=4 * columns),
        "sink": AttentionEdit(sink=torch.randn(1, 1, LENGTH, generator=g)),
        "head gain": AttentionEdit(head_gain=torch.rand(1, HEADS, LENGTH, generator=g)),
        "head gain of all": AttentionEdit(head_gain=torch.rand(1, HEADS, generator=g), bias=columns),
        "score gate": AttentionEdit(score_gate=ScoreGate(opened, 2, 0.1, ~opened & (groups > 0))),
        "windows": AttentionEdit(windows=Windows(torch.full((1, HEADS), 4), sink=2)),
        "unmask": AttentionEdit(unmask=(UnmaskRect(opened, opened),)),
        "source": AttentionEdit(head_source=HeadSource(torch.tensor([[1, 0, 2, 2, 5, 4]]))),
    }


@pytest.mark.parametrize("cuts", [(0, 4, 13), (0, 3, 6, 12, 13)])
@pytest.mark.parametrize("name", sorted(edits()))
def test_pieces_are_the_whole(name, cuts):
    edit = edits()[name]
    g = torch.Generator().manual_seed(5)
    query = torch.randn(1, HEADS, LENGTH, SIZE, generator=g)
    key, value = (torch.randn(1, 2, LENGTH, SIZE, generator=g) for _ in range(2))
    whole, _ = attend(query, key, value, edit, is_causal=True)
    plain, _ = attend(query, key, value, None, is_causal=True)
    parts = []
    for start, stop in itertools.pairwise(cuts):
        rows, keys = slice(start, stop), slice(0, stop)
        cut = chunk(edit, start, stop)
        parts.append(attend(query[:, :, rows], key[:, :, keys], value[:, :, keys], cut, is_causal=True)[0])
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    assert not torch.allclose(whole, plain)


@pytest.mark.parametrize("cuts", [(0, 5, 13), (0, 2, 3, 13)])
@pytest.mark.parametrize("rows", [None, (1, 2, 4), (12,)])
def test_statistics_of_pieces_are_those_of_the_whole(cuts, rows):
    g = torch.Generator().manual_seed(6)
    query, key = (
        torch.randn(1, HEADS, LENGTH, SIZE, generator=g),
        torch.randn(1, 3, LENGTH, SIZE, generator=g),
    )
    groups = torch.randint(0, 2, (1, LENGTH), generator=g, dtype=torch.uint8)
    chosen = None if rows is None else RowSelection(torch.tensor(rows))
    columns = torch.tensor([[0, 3, 9, -1]])
    request = StatsRequest(chosen, Channels(groups, 2), entropy=True, top1=True, lse=True, columns=columns)
    _, whole = attend(query, key, key, request.as_edit, is_causal=True)
    parts = []
    for start, stop in itertools.pairwise(cuts):
        cut = chunk(request.as_edit, start, stop)
        if cut.stats is not None:
            keys = key[:, :, :stop]
            parts.append(attend(query[:, :, start:stop], keys, keys, cut, is_causal=True)[1])
    for name, one, other in zip(whole._fields, joined(parts), whole, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", sorted({*edits()} - {"unmask"}))
def test_these_edits_can_be_divided(name):
    assert divided(edits()[name]) is None


@pytest.mark.parametrize("part", ["head_source", "score_gate", "unmask"])
def test_what_relates_rows_to_later_ones_is_refused(part):
    everywhere = torch.ones(1, LENGTH, dtype=torch.bool)
    edit = {
        "head_source": AttentionEdit(head_source=HeadSource(rule=lambda received, seen: received.argmax(1))),
        "score_gate": AttentionEdit(score_gate=ScoreGate(everywhere, 2, 0.1)),
        "unmask": AttentionEdit(unmask=(UnmaskRect(everywhere, everywhere),)),
    }[part]
    assert divided(edit) is not None
    with pytest.raises(CompositionError, match="in one piece"):
        chunk(edit, 0, 4)
