"""Keys that stand out in a row are in another group there: by plain loops, on every path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from kernel_cases import QUICK, Case, cases, check_call, naive, random_like

from regaze.errors import BadParameterError
from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import AttentionEdit, Channels, Outstanding, Scale, StatsRequest, attend, attention_stats

PARTS = ("outstanding", "move_mass", "scale", "bias", "value_gain", "spread")


@QUICK
@given(cases(parts=PARTS, dtypes=(torch.float32,)))
def test_equals_plain_loops(case: Case):
    exact, policy = case.doubled(), case.edit.policy
    factors = (
        None if policy is None else lambda masses: policy(torch.tensor(masses, dtype=torch.float64)).tolist()
    )
    want, _ = naive(exact.q, exact.k, exact.v, exact.edit, policy=factors, **exact.options)
    got = exact.call(attend, backend="reference")[0]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6 * case.scale)


@QUICK
@given(cases(parts=PARTS, dtypes=(torch.float32,)))
def test_torch_path_within_the_error_budget(case: Case):
    check_call(case, "torch")


GROUPS = torch.tensor([[1, 0, 2, 0, 1]], dtype=torch.uint8)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@pytest.mark.parametrize("queries", [1, 3])
def test_masses_and_coefficients_by_hand(backend, queries):
    """Weights .4 .25 .05 .2 .1 of five keys, of which one of group 0 is above 1.1 times the mean."""
    weights = torch.tensor([0.4, 0.25, 0.05, 0.2, 0.1])
    q = (weights.log() * 5**0.5).expand(1, 2, queries, 5)
    k = v = torch.eye(5).expand(1, 2, 5, 5)
    channels = Channels(GROUPS, 4, weights=torch.ones(1, 1, 5), outstanding=Outstanding(0, 3, 1.1))
    stats = attention_stats(q, k, StatsRequest(channels=channels), backend=backend)
    want = torch.tensor([0.2, 0.5, 0.05, 0.25, 1.0])
    torch.testing.assert_close(stats.masses, want.expand(1, 2, queries, 5))
    edit = AttentionEdit(channels=channels, policy=Scale((1.0, 2.0, 0.5, 0.1, 0.0)))
    out, _ = attend(q, k, v, edit.replace(stats=StatsRequest(channels=channels)), backend=backend)
    torch.testing.assert_close(out[0, 1, -1], torch.tensor([0.8, 0.025, 0.025, 0.2, 0.2]))


def test_later_keys_stand_out_in_their_group():
    """A key after the named ones is in group 0; decode steps with a folded policy know it, too."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (random_like(g, 1, 2, n, 8, scale=3.0) for n in (1, 9, 9))
    groups = torch.tensor([[2, 1, 2]], dtype=torch.uint8)
    policy = MoveMass(4, (3,), (1,), (1,), 0.7, 0.0, 0.0)
    edits = [AttentionEdit(channels=Channels(groups, 4, outstanding=o), policy=policy) for o in
             (Outstanding(0, 3, 1.0), None)]  # fmt: skip
    for _ in range(2):
        got, same = (attend(q, k, v, edit, backend="torch")[0] for edit in edits)
        want = attend(q, k, v, edits[0], backend="reference")[0]
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(same, attend(q, k, v)[0])
        assert not torch.allclose(got, same, atol=1e-3)


def test_what_does_not_fit():
    with pytest.raises(BadParameterError, match="from one group into another, got 1 and 1"):
        Outstanding(1, 1, 2.0)
    with pytest.raises(BadParameterError, match="at least 0; got -1"):
        Outstanding(0, 1, -1.0)
    with pytest.raises(BadParameterError, match="from group 0 into 3, but there are 3 groups"):
        Channels(GROUPS, 3, outstanding=Outstanding(0, 3, 1.0))
    with pytest.raises(BadParameterError, match="but there are 0 groups"):
        Channels(weights=torch.ones(1, 1, 4), outstanding=Outstanding(0, 1, 1.0))
