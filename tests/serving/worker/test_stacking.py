"""Rows of several requests in one call give what each gives alone."""

from __future__ import annotations

import pytest
import torch

from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import AttentionEdit, Channels, HeadSource, StatsRequest, Windows, attend
from regaze.serving.worker.stacking import Stacks, kind, stacked

HEADS, SIZE = 6, 8
#: Keys of each request, and those that its edit names.
KEYS, NAMED = (9, 5, 14), (7, 5, 3)


def edit_of(name: str, named: int, seed: int) -> AttentionEdit:
    g = torch.Generator().manual_seed(seed)
    one, all_ = torch.rand(1, 1, named, generator=g), torch.rand(1, HEADS, named, generator=g)
    columns = one if seed % 2 else all_
    groups = torch.randint(0, 3, (1, named), generator=g, dtype=torch.uint8)
    weighted = Channels(groups, 3, torch.rand(1, 1, named, generator=g))
    return {
        "scores": AttentionEdit(score_slope=columns, bias=4 * one),
        "gains": AttentionEdit(score_gain=2 * columns, value_gain=one),
        "policy": AttentionEdit(channels=weighted, policy=MoveMass(4, (1,), (2,), (1, 2), 0.8, 0.0, 0.0)),
        "heads": AttentionEdit(head_gain=all_[..., 0], head_score_gain=all_[..., 1], bias=one),
        "windows": AttentionEdit(windows=Windows(torch.randint(1, 5, (1, HEADS), generator=g), sink=1)),
        "sink": AttentionEdit(sink=torch.randn(1, 1, 1, generator=g), bias=one),
    }[name]


@pytest.mark.parametrize("name", ["scores", "gains", "policy", "heads", "windows", "sink"])
def test_a_stack_gives_what_its_parts_give(name):
    edits = [edit_of(name, named, seed) for seed, named in enumerate(NAMED)]
    assert len({kind(edit) for edit in edits}) == 1
    g = torch.Generator().manual_seed(8)
    query = torch.randn(3, HEADS, 1, SIZE, generator=g)
    key, value = (torch.randn(3, 2, max(KEYS), SIZE, generator=g) for _ in range(2))
    mask = (torch.arange(max(KEYS)) < torch.tensor(KEYS)[:, None])[:, None, None]
    out, _ = attend(query, key, value, stacked(edits), mask=mask)
    for sample, (edit, keys) in enumerate(zip(edits, KEYS, strict=True)):
        one = slice(sample, sample + 1)
        alone, _ = attend(query[one], key[one, :, :keys], value[one, :, :keys], edit, is_causal=True)
        plain, _ = attend(query[one], key[one, :, :keys], value[one, :, :keys], is_causal=True)
        torch.testing.assert_close(out[one], alone)
        assert not torch.allclose(alone, plain)


def test_kinds_differ_by_parts_and_policies():
    policies = [MoveMass(3, (1,), (2,), (1, 2), moved, 0.0, 0.0) for moved in (0.5, 0.6)]
    groups = Channels(torch.zeros(1, 4, dtype=torch.uint8), 3)
    edits = [AttentionEdit(channels=groups, policy=policy) for policy in policies]
    edits += [AttentionEdit(bias=torch.zeros(1, 1, 4)), AttentionEdit(score_gain=torch.ones(1, 1, 4))]
    assert len({kind(edit) for edit in edits}) == 4


@pytest.mark.parametrize(
    "edit",
    [
        AttentionEdit(head_source=HeadSource(torch.tensor([[1, 0]]))),
        AttentionEdit(stats=StatsRequest(lse=True)),
        AttentionEdit(spread=torch.zeros(1, 4, dtype=torch.bool)),
        AttentionEdit(head_gain=torch.ones(1, 2, 1)),
    ],
)
def test_what_runs_alone(edit):
    assert kind(edit) is None


def test_the_newest_stack_of_a_place_is_made_once_for_its_edits():
    stacks, edits = Stacks(), [edit_of("scores", 4, seed) for seed in range(3)]
    first, other = stacks.of(edits, 0), stacks.of(edits, 1)
    assert other is not first
    assert stacks.of(list(edits), 0) is first
    assert stacks.of(edits[::-1], 0) is not first
    assert stacks.of(edits, 0) is not first  # only the newest is there
    assert stacks.of(edits, 1) is other
    assert stacks.of(edits[:1], 1) is edits[0]
    stacks.clear()
    assert stacks.of(edits, 1) is not other
