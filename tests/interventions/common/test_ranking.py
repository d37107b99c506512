"""What several methods single out, by hand."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from regaze.interventions.common.ranking import half_of_heads, least_attended, saliency_map


def test_half_of_the_heads_is_at_least_one():
    assert [half_of_heads(heads) for heads in (1, 2, 3, 7, 32)] == [1, 1, 1, 3, 16]


def test_of_equal_columns_the_first_are_kept_and_missing_ones_never():
    weights = torch.tensor([[0.2, 0.1, 0.1, 0.1, 0.3], [0.0, 0.0, 0.0, 0.0, 0.0]])
    exist = torch.tensor([[True] * 5, [True, True, True, False, False]])
    chosen = least_attended(weights, exist, torch.tensor([2, 9]))
    assert chosen.tolist() == [[False, True, True, False, False], [True, True, True, False, False]]


def test_the_clip_and_a_flat_map():
    spike = torch.zeros(1, 16)
    spike[0, 4] = 1.0
    assert_close(saliency_map(spike, spike >= 0), spike)
    spike[0, 5] = 0.4
    assert saliency_map(spike, spike >= 0)[0, 5] > 0.4  # the clip brings the spike nearer
    assert torch.equal(saliency_map(torch.full((2, 5), 0.3), torch.ones(2, 5).bool()), torch.zeros(2, 5))
    assert torch.equal(saliency_map(torch.ones(1, 1), torch.ones(1, 1).bool()), torch.zeros(1, 1))
    padded = torch.tensor([[3.0, 1.0, 2.0, 0.0, 0.0], [0.0] * 5])
    valid = torch.tensor([[True, True, True, False, False], [False] * 5])
    assert_close(saliency_map(padded, valid), torch.tensor([[1.0, 0.0, 0.5, 0.0, 0.0], [0.0] * 5]))
    other = torch.rand(1, 9, generator=torch.Generator().manual_seed(0))
    assert_close(
        saliency_map(3 * other + 1, other >= 0), saliency_map(other, other >= 0), atol=1e-5, rtol=1e-5
    )
