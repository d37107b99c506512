"""The policies of GIFT and AD-HH, by hand and by their invariants."""

from __future__ import annotations

import math

import pytest
import torch

from regaze.errors import BadParameterError
from regaze.interventions.adhh.policy import DropHeavyChannel
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.kernels import AttentionEdit, Channels, attend

IMAGE, QUERY, SALIENT = 1, 2, 3


def gaze_edit(
    salience: torch.Tensor, groups: list[int], heads: int, query_gain: float = 1.0
) -> AttentionEdit:
    """AmplifyTopHeads on keys of these groups, image keys weighted by exp(salience)."""
    group = torch.tensor([groups], dtype=torch.uint8)
    weights = torch.zeros(1, 1, len(groups))
    weights[0, 0, group[0] == IMAGE] = salience.exp()
    channels = Channels(groups=group, num_groups=3, weights=weights)
    return AttentionEdit(channels=channels, policy=AmplifyTopHeads(4, IMAGE, QUERY, SALIENT, heads))


def rows_after(weights: torch.Tensor, edit: AttentionEdit) -> torch.Tensor:
    """The edited attention weights of one row per head, [H, Lk] -> [H, Lk]."""
    heads, keys = weights.shape
    q, k = torch.zeros(1, heads, 1, 4), torch.zeros(1, heads, keys, 4)
    v = torch.eye(keys).expand(1, heads, keys, keys)
    return attend(q, k, v, edit, mask=weights.log()[None, :, None])[0][0, :, 0]


def test_amplify_top_heads_by_hand():
    """S = (0, .5, 1), alpha = ln 4: the image is re-weighted by (1, 2, 4), the query by r = 2.857142857."""
    row = torch.tensor([[0.05, 0.10, 0.05, 0.20, 0.10, 0.50]])
    edit = gaze_edit(math.log(4) * torch.tensor([0.0, 0.5, 1.0]), [0, 1, 1, 1, 2, 0], heads=1)
    want = [0.0272373541, 0.0544747082, 0.0544747082, 0.4357976654, 0.1556420233, 0.2723735409]
    assert rows_after(row, edit)[0].tolist() == pytest.approx(want, abs=1e-6)


def test_the_top_heads_are_edited_and_their_gain_is_pooled():
    torch.manual_seed(0)
    weights = torch.rand(5, 7).softmax(-1)
    groups = [0, 1, 1, 1, 2, 2, 0]
    salience = torch.tensor([2.0, 0.0, 1.0])
    got = rows_after(weights, gaze_edit(salience, groups, heads=2))
    image, query = torch.tensor(groups) == IMAGE, torch.tensor(groups) == QUERY
    looks = weights[:, image].sum(1).topk(2).indices.tolist()
    reads = weights[:, query].sum(1).topk(2).indices.tolist()
    gain = (weights[looks][:, image] * salience.exp()).sum() / weights[looks][:, image].sum()
    for head in range(5):
        want = weights[head].clone()
        if head in looks:
            want[image] *= salience.exp()
        if head in reads:
            want[query] *= gain
        torch.testing.assert_close(got[head], want / want.sum())


def test_flat_salience_and_without_an_image_changes_nothing():
    torch.manual_seed(1)
    weights = torch.rand(4, 6).softmax(-1)
    flat = gaze_edit(torch.zeros(2), [0, 1, 1, 2, 0, 0], heads=2)
    torch.testing.assert_close(rows_after(weights, flat), weights)
    blind = gaze_edit(torch.zeros(0), [0, 0, 0, 2, 0, 0], heads=2)
    torch.testing.assert_close(rows_after(weights, blind), weights)


def test_of_equal_masses_the_lower_head_is_chosen():
    weights = torch.full((4, 4), 0.25)
    got = rows_after(weights, gaze_edit(torch.ones(1), [0, 1, 2, 0], heads=2))
    assert torch.equal(got[0], got[1])
    torch.testing.assert_close(got[2:], weights[2:])
    assert not torch.allclose(got[0], weights[0])


def test_a_channel_is_removed_where_it_holds_enough_in_the_listed_heads():
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.7, 0.2, 0.1]])
    channels = Channels(groups=torch.tensor([[0, 1, 1]], dtype=torch.uint8), num_groups=2)
    edit = AttentionEdit(channels=channels, policy=DropHeavyChannel(2, 1, 0.4, heads=(0, 2)))
    got = rows_after(weights, edit)
    assert got[0].tolist() == pytest.approx([0.5, 0.0, 0.0])  # lost, not given to others
    torch.testing.assert_close(got[1:], weights[1:])


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: AmplifyTopHeads(4, 1, 1, 3, 2), "three channels"),
        (lambda: AmplifyTopHeads(3, 1, 2, 3, 2), "three channels"),
        (lambda: AmplifyTopHeads(4, 1, 2, 3, -1), "heads"),
        (lambda: AmplifyTopHeads(4, 1, 2, 3, 2, query_gain=0.0), "query_gain"),
        (lambda: DropHeavyChannel(2, 2, 0.4, (0,)), "channel"),
    ],
)
def test_bad_policies_are_refused(make, what):
    with pytest.raises(BadParameterError, match=what):
        make()
