"""The policies of VAR, GIFT and AD-HH, by hand and by their invariants."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
from kernel_cases import moved

from regaze.errors import BadParameterError
from regaze.interventions.adhh.policy import DropHeavyChannel
from regaze.interventions.common.move_mass import MoveMass
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.interventions.spin.policy import DampLowHeads
from regaze.kernels import AttentionEdit, Channels, Policy, attend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMAGE, QUERY, SALIENT = 1, 2, 3


def coefficients_of(policy: Policy, *masses: list[float]) -> list[list[float]]:
    """What a policy makes of the masses of a row, one list per head."""
    return policy(torch.tensor(masses, dtype=torch.float64)[None, :, None])[0, :, 0].tolist()


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


def test_a_head_that_holds_just_the_threshold_loses_the_channel():
    policy = DropHeavyChannel(3, 1, 0.25, heads=(0, 2, 3))
    masses = [[0.5, 0.25, 0.25], [0.5, 0.5, 0.0], [0.5, 0.125, 0.375], [0.0, 1.0, 0.0]]
    kept, dropped = [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]
    assert coefficients_of(policy, *masses) == [dropped, kept, kept, dropped]


def test_the_gain_of_the_query_is_that_of_the_image_times_beta():
    """Head 0 has most of the image and head 1 most of the query; its gain is 0.5 / 0.25 = 2, times 1.5."""
    policy = AmplifyTopHeads(4, IMAGE, QUERY, SALIENT, heads=1, query_gain=1.5)
    first, second = coefficients_of(policy, [0.5, 0.25, 0.25, 0.5], [0.5, 0.125, 0.375, 0.0])
    assert first == pytest.approx([1 / 1.25, 0.0, 1 / 1.25, 1 / 1.25])
    total = 0.5 + 0.125 + 3 * 0.375
    assert second == pytest.approx([1 / total, 1 / total, 3 / total, 0.0])
    assert AmplifyTopHeads(4, IMAGE, QUERY, SALIENT, heads=1).query_gain == 1.0


def test_heads_without_any_mass_stay_without():
    policy = AmplifyTopHeads(4, IMAGE, QUERY, SALIENT, heads=2, query_gain=2.0)
    masses = [0.0] * 4
    assert coefficients_of(policy, masses, masses) == [[1.0, 0.0, 2.0, 1.0]] * 2
    nobody = AmplifyTopHeads(4, IMAGE, QUERY, SALIENT, heads=0)
    assert coefficients_of(nobody, [0.25, 0.5, 0.25, 2.0]) == [[1.0, 1.0, 1.0, 0.0]]


# VAR ------------------------------------------------------------------------------------------------------


def move_mass(**changes) -> MoveMass:
    """Half of channel 1 goes to channels 2 and 3, in heads that look at the gate."""
    default = {"donors": (1,), "receivers": (2, 3), "gate": (1, 2), "moved": 0.5, "min_share": 0.5}
    return MoveMass(4, **{**default, "min_mass": 0.25, **changes})


def test_mass_is_moved_in_proportion_to_what_the_receivers_hold():
    """0.5 of 0.4 goes to receivers that hold 0.5: 0.2 / 0.5 more of each."""
    (given,) = coefficients_of(move_mass(), [0.1, 0.4, 0.3, 0.2])
    assert given == pytest.approx([1.0, 0.5, 1.4, 1.4])


def test_heads_that_look_elsewhere_are_left_alone():
    """At both limits of the test a head is edited, just below either it is not."""
    at_both = [0.75, 0.125, 0.125, 0.0]
    less_mass = [0.8125, 0.0625, 0.125, 0.0]  # the gate has 0.1875 of at least 0.25
    less_share = [0.5, 0.375, 0.125, 0.0]  # the receivers have 0.125 of at least half of 0.5
    edited, ones = [1.0, 0.5, 1.5, 1.5], [1.0] * 4
    assert coefficients_of(move_mass(), at_both, less_mass, less_share) == [edited, ones, ones]


@pytest.mark.parametrize("test", [{"min_mass": 0.0}, {"min_share": 0.0}, {"min_mass": 0.0, "min_share": 0.0}])
def test_nothing_is_given_to_receivers_without_mass(test):
    policy = move_mass(**test)
    masses = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])[None, :, None].requires_grad_()
    assert policy(masses)[0, :, 0].tolist() == [[1.0] * 4, [1.0, 0.5, 1.0, 1.0]]
    policy(masses).sum().backward()
    assert masses.grad.isfinite().all()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("test", [{}, {"min_mass": 0.0, "min_share": 0.0}, {"moved": 1.0, "min_mass": 0.3}])
def test_the_columns_of_var_do_what_its_masses_say(groups, test):
    """The part that edits weights directly, for rows of both samples and for keys without a group."""
    g = torch.Generator().manual_seed(3)
    channels = Channels(torch.randint(0, 4, (groups, 20), generator=g, dtype=torch.uint8), 4)
    weights = torch.randn(2, 3, 5, 23, generator=g).mul(3).softmax(-1)
    weights[0, 0, 0] = 0.0  # nothing is visible
    blind = weights[1, 2]
    blind[..., :20][..., channels.groups[-1] >= 2] = 0.0  # the receivers hold nothing
    weights[1, 2] = blind / blind.sum(-1, keepdim=True)
    policy = move_mass(**test)
    coefficients = policy(channels.masses(weights))
    assert 0.2 < (coefficients != 1).any(-1).float().mean() < 0.9
    got = policy.fold(channels)(weights.flatten(1, 2)).view_as(weights)
    torch.testing.assert_close(got, weights * channels.per_key(coefficients, 23), rtol=1e-5, atol=1e-7)


def test_the_columns_of_var_edit_heads_at_both_limits():
    """A key per channel, whose weights are its masses."""
    channels = Channels(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), 4)
    at_both = torch.tensor([[[0.75, 0.125, 0.125, 0.0]]])
    got = move_mass().fold(channels)(at_both)
    assert got[0, 0].tolist() == [0.75, 0.0625, 0.1875, 0.0]


def test_the_columns_of_var_are_fp32_whatever_the_default_is():
    channels = Channels(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), 4)
    weights = torch.tensor([[[0.1, 0.4, 0.3, 0.2]]])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # transformers does so while it loads a model
    try:
        got = move_mass().fold(channels)(weights)
    finally:
        torch.set_default_dtype(before)
    assert got[0, 0].tolist() == pytest.approx([0.1, 0.2, 0.42, 0.28], abs=1e-6)


def test_var_has_no_columns_for_weighted_keys():
    groups, weights = torch.zeros(1, 3, dtype=torch.uint8), torch.ones(1, 1, 3)
    assert move_mass().fold(Channels(groups, 3, weights)) is None


# All of them ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(
    "policy",
    [
        move_mass(),
        move_mass(gate=(0, 3), moved=0.75, min_share=0.3, min_mass=0.4),
        AmplifyTopHeads(4, IMAGE, QUERY, SALIENT, heads=2, query_gain=1.5),
        AmplifyTopHeads(4, QUERY, 0, SALIENT, heads=1, query_gain=0.5),
        DropHeavyChannel(4, 2, 0.25, heads=(0, 3)),
        DampLowHeads(4, channel=1, kept=2, factor=0.08),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_the_kernels_do_what_the_policy_says(policy):
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 4, n, 16, generator=g) for n in (1, 24, 24))
    weighted = isinstance(policy, AmplifyTopHeads)
    groups = torch.randint(0, 3 if weighted else 4, (2, 24), generator=g, dtype=torch.uint8)
    weights = 2 * torch.rand(1, 2, 24, generator=g) if weighted else None
    edit = AttentionEdit(channels=Channels(groups, 3 if weighted else 4, weights), policy=policy)
    want = attend(q, k, v, edit, backend="reference")[0]
    assert (want - attend(q, k, v, AttentionEdit())[0]).abs().max() > 0.1
    there = [moved(each, DEVICE) for each in (q, k, v, edit)]
    got = attend(*there, backend="triton")[0]
    torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: AmplifyTopHeads(4, 1, 1, 3, 2), r"three channels in 0\.\.3, got \(1, 1, 3\)$"),
        (lambda: AmplifyTopHeads(3, 1, 2, 3, 2), r"three channels in 0\.\.2, got \(1, 2, 3\)$"),
        (lambda: AmplifyTopHeads(3, -1, 2, 0, 2), r"three channels in 0\.\.2, got \(-1, 2, 0\)$"),
        (lambda: AmplifyTopHeads(4, 1, 2, 3, -1), r"heads must not be negative .*, got -1 and 1\.0$"),
        (lambda: AmplifyTopHeads(4, 1, 2, 3, 2, query_gain=0.0), r"query_gain must be positive, got 2 and 0"),
        (lambda: DropHeavyChannel(2, 2, 0.4, (0,)), r"^channel must be in 0\.\.1, got 2$"),
        (lambda: DropHeavyChannel(2, -1, 0.4, (0,)), r"^channel must be in 0\.\.1, got -1$"),
        (
            lambda: move_mass(moved=1.25),
            r"^moved is the fraction of mass given away, in \[0, 1\]; got 1\.25$",
        ),
        (lambda: move_mass(moved=-0.25), r"^moved is the fraction .*; got -0\.25$"),
        (lambda: move_mass(donors=(3, 2, 1)), r"^channels \[2, 3\] are donors and receivers; make them one"),
        (lambda: move_mass(donors=(1, 1)), r"^donors must be distinct channels in 0\.\.3, got \(1, 1\)$"),
        (lambda: move_mass(receivers=(2, 4)), r"^receivers must be distinct .* in 0\.\.3, got \(2, 4\)$"),
        (lambda: move_mass(gate=(-1,)), r"^gate must be distinct channels in 0\.\.3, got \(-1,\)$"),
    ],
)
def test_bad_policies_are_refused(make, what):
    with pytest.raises(BadParameterError, match=what):
        make()


def test_policies_take_all_channels_that_there_are():
    assert move_mass(donors=(0,), receivers=(3,), gate=(0, 3), moved=0.0).moved == 0.0
    assert AmplifyTopHeads(3, 0, 1, 2, heads=0).heads == 0
    assert (DropHeavyChannel(2, 0, 0.4, ()).channel, DropHeavyChannel(2, 1, 0.4, ()).channel) == (0, 1)
