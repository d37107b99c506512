"""The specification against formulas written out independently: stages, hand examples, masks, statistics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from kernel_cases import (
    QUICK,
    Case,
    cases,
    channel_weights,
    naive,
    naive_move_mass,
    random_like,
    stats_dict,
)

from regaze.errors import BadParameterError, ShapeError
from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import (
    AttentionEdit,
    Channels,
    RowSelection,
    Scale,
    StatsRequest,
    UnmaskRect,
    attend,
    attention_stats,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny tensors: a second thread only waits, for long when the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reference(q, k, v, edit=None, **kw):
    return attend(q, k, v, edit, backend="reference", **kw)


def row(weights: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v for which head h has exactly the softmax row `weights[h]`, and whose output is that row."""
    log = torch.tensor(weights, dtype=torch.float64).log()
    heads, keys = log.shape
    k = torch.eye(keys, dtype=torch.float64).expand(1, heads, keys, keys)
    return log[None, :, None] * keys**0.5, k, k


def scores(values: list[float]):
    return row([[math.exp(value) for value in values]])


def numpy_softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def policy_of(edit: AttentionEdit):
    if isinstance(edit.policy, MoveMass):
        return naive_move_mass(edit.policy)
    if isinstance(edit.policy, Scale):
        factors = edit.policy.factors

        def scaled(masses):
            after = sum(f * m for f, m in zip(factors, masses, strict=True))
            if not edit.policy.renormalise:
                return factors
            return [f * sum(masses) / after for f in factors] if after > 0 else [1.0] * len(masses)

        return scaled
    return None


@QUICK
@given(cases(dtypes=(torch.float32,)))
def test_equals_plain_loops(case: Case):
    exact = case.doubled()
    out, _ = exact.call(reference)
    want, _ = naive(exact.q, exact.k, exact.v, exact.edit, policy=policy_of(case.edit), **exact.options)
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-9 * case.scale)


# --- one stage at a time, by hand


def test_plain_attention():
    q, k, v = (torch.randn(2, 3, 4, 5, dtype=torch.float64) for _ in range(3))
    want = torch.softmax(q @ k.mT / 5**0.5, -1) @ v
    torch.testing.assert_close(reference(q, k, v)[0], want)
    torch.testing.assert_close(reference(q, k, v, scaling=0.3)[0], torch.softmax(q @ k.mT * 0.3, -1) @ v)


def test_pai_slope_hand_example():
    """PAI: s + alpha |s| raises positive and negative scores of the image columns alike."""
    plain = torch.tensor([0.473991, 0.064148, 0.174371, 0.287490], dtype=torch.float64)
    boosted = torch.tensor([0.579259, 0.078394, 0.129250, 0.213097], dtype=torch.float64)
    q, k, v = scores([1.0, -1.0, 0.0, 0.5])
    torch.testing.assert_close(reference(q, k, v)[0].flatten(), plain, rtol=0, atol=1e-6)
    edit = AttentionEdit(score_slope=torch.tensor([[[0.5, 0.5]]]))
    torch.testing.assert_close(reference(q, k, v, edit)[0].flatten(), boosted, rtol=0, atol=1e-6)


def test_paint_two_slopes_hand_example():
    edit = AttentionEdit(score_slope=torch.tensor([[[0.0, 0.7, 0.4]]], dtype=torch.float64))
    q, k, v = scores([1.0, -2.0, 0.5, 0.0])
    want = torch.tensor([0.4328, 0.0874, 0.3206, 0.1592], dtype=torch.float64)
    torch.testing.assert_close(reference(q, k, v, edit)[0].flatten(), want, rtol=0, atol=5e-5)


def test_head_mean_slope_hand_example():
    """HGAI: s_h + alpha * mean over heads of |s|, on the named columns, for every head the same amount."""
    rows = torch.tensor([[1.0, -2.0, 0.5], [-3.0, 0.0, 1.0]], dtype=torch.float64)
    q, k = torch.zeros(1, 2, 1, 3).double(), torch.eye(3).double()[None, None]
    q[0, :, 0] = rows
    edit = AttentionEdit(head_mean_slope=torch.tensor([[[0.5, 0.25]]], dtype=torch.float64))
    out = reference(q, k, torch.eye(3).double()[None, None], edit, scaling=1.0)[0]
    want = rows + torch.tensor([0.5 * 2.0, 0.25 * 1.0, 0.0])
    torch.testing.assert_close(out[0, :, 0], want.softmax(-1))


def test_heads_that_cannot_see_a_key_count_in_the_mean():
    q, k = torch.zeros(1, 2, 1, 2), torch.eye(2)[None, None]
    q[0, :, 0] = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    mask = torch.tensor([[True, True], [False, True]])[None, :, None]
    edit = AttentionEdit(head_mean_slope=torch.ones(1, 1, 1))
    out = reference(q, k, torch.eye(2)[None, None], edit, mask=mask, scaling=1.0)[0][0, :, 0]
    want = torch.stack([torch.tensor([1.0 + 2.0, 0.0]).softmax(-1), torch.tensor([0.0, 1.0])])
    torch.testing.assert_close(out, want)


@QUICK
@given(cases(parts=("head_mean", "slope", "gain", "bias", "open"), dtypes=(torch.float32,)))
def test_head_mean_slope_equals_plain_loops(case: Case):
    exact = case.doubled()
    want, _ = naive(exact.q, exact.k, exact.v, exact.edit, policy=None, **exact.options)
    torch.testing.assert_close(exact.call(reference)[0], want, rtol=1e-9, atol=1e-9 * case.scale)


def test_spread_hand_example():
    """Columns 0 and 1 come to hold .75 / 1.1 of the row, 1 : 4 as in plain attention; the rest 2 : 3."""
    q, k, v = row([[0.05, 0.2, 0.3, 0.45]])
    odds = torch.tensor([11.0, 1.0, 1.0, 1 / 9], dtype=torch.float64)  # to .55, .2, .3, .05, which sum to 1.1
    spread = torch.tensor([[True, True]])
    edit = AttentionEdit(bias=odds.log()[None, None], spread=spread)
    out, stats = reference(q, k, v, edit.replace(stats=StatsRequest(full_rows=True, edited=True)))
    image, rest = 0.75 / 1.1, 0.35 / 1.1
    want = [image * 0.2, image * 0.8, rest * 0.4, rest * 0.6]
    assert out.flatten().tolist() == pytest.approx(want, rel=1e-12)
    assert stats.slices.flatten().tolist() == pytest.approx(want, rel=1e-6)


def test_a_spread_keeps_the_mass_that_plain_attention_cannot_divide():
    q, k, v = row([[0.5, 0.5, 1e-320]])
    edit = AttentionEdit(
        bias=torch.tensor([[[0.0, 0.0, 800.0]]]).double(), spread=torch.tensor([[False] * 2 + [True]])
    )
    assert reference(q, k, v, edit)[0].sum() == pytest.approx(1.0)


def test_a_spread_alone_changes_nothing():
    q, k, v = scores([0.3, -1.0, 2.0])
    edit = AttentionEdit(spread=torch.tensor([[True, False]]))
    assert edit.neutral
    for backend in ("reference", "torch"):
        assert torch.equal(*(attend(q, k, v, each, backend=backend)[0] for each in (edit, None)))


@QUICK
@given(cases(parts=("spread", "slope", "bias", "scale", "value_gain", "open"), dtypes=(torch.float32,)))
def test_spread_equals_plain_loops(case: Case):
    exact, policy = case.doubled(), case.edit.policy
    factors = None if policy is None else lambda masses: policy(torch.tensor(masses)).tolist()
    want, _ = naive(exact.q, exact.k, exact.v, exact.edit, policy=factors, **exact.options)
    torch.testing.assert_close(exact.call(reference)[0], want, rtol=1e-6, atol=1e-6 * case.scale)


def test_order_of_the_score_stages_is_slope_gain_head_bias():
    values = [0.7, -1.2, 0.4]
    edit = AttentionEdit(
        score_slope=torch.tensor([[[0.5, 0.25]]], dtype=torch.float64),
        score_gain=torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.float64),
        head_score_gain=torch.tensor([[0.5]], dtype=torch.float64),
        bias=torch.tensor([[[0.1, -0.2]]], dtype=torch.float64),
    )
    want = [0.5 * (0.7 * 1.5) + 0.1, 0.5 * 2 * (-1.2 + 0.25 * 1.2) - 0.2, 0.5 * 3 * 0.4]
    q, k, v = scores(values)
    out = reference(q, k, v, edit)[0].flatten().tolist()
    assert out == pytest.approx(numpy_softmax(want), rel=1e-12)


def test_policy_sees_the_softmax_of_the_edited_scores_and_value_gain_comes_after_it():
    q, k, v = scores([0.0, 0.0, 0.0])
    seen = []

    class Watch(Scale):
        def __call__(self, masses):
            seen.append(masses.flatten().tolist())
            return super().__call__(masses)

    edit = AttentionEdit(
        bias=torch.tensor([[[math.log(2.0)]]]).double(),
        channels=Channels(torch.tensor([[0, 1, 1]], dtype=torch.uint8), 2),
        policy=Watch((0.5, 2.0)),
        value_gain=torch.tensor([[[10.0, 1.0, 3.0]]]).double(),
        head_gain=torch.tensor([[0.1]]).double(),
    )
    out = reference(q, k, v, edit)[0].flatten().tolist()
    assert seen == [pytest.approx([0.5, 0.5])]
    assert out == pytest.approx([0.1 * 10 * 0.5 * 0.5, 0.1 * 2 * 0.25, 0.1 * 3 * 2 * 0.25])


def test_multiply_and_renormalise_is_a_bias():
    gain = torch.rand(1, 2, 7).double() + 0.1
    q, k, v = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (3, 7, 7))
    weights = torch.softmax(q @ k.mT / 2, -1) * gain[:, :, None]
    want = weights / weights.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(reference(q, k, v, AttentionEdit(bias=gain.log()))[0], want)


def test_head_gain_per_row_ignores_the_row_selection():
    q, k, v = (torch.randn(1, 2, 3, 4, dtype=torch.float64) for _ in range(3))
    gain = torch.tensor([[[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]]]).double()
    edit = AttentionEdit(rows=RowSelection(torch.tensor([0])), head_gain=gain)
    torch.testing.assert_close(reference(q, k, v, edit)[0], reference(q, k, v)[0] * gain[..., None])


# --- soft cap and sinks


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_soft_cap_bends_the_scores_before_mask_and_edit(backend):
    q, k, v = scores([2.0, -3.0, 0.5])
    mask = torch.tensor([[[[0.0, 1.0, 0.0]]]], dtype=torch.float64)
    edit = AttentionEdit(bias=torch.tensor([[[0.25]]], dtype=torch.float64))
    want = [1.5 * math.tanh(2.0 / 1.5) + 0.25, 1.5 * math.tanh(-3.0 / 1.5) + 1.0, 1.5 * math.tanh(0.5 / 1.5)]
    out, _ = attend(q, k, v, edit, mask=mask, softcap=1.5, backend=backend)
    assert out.flatten().tolist() == pytest.approx(numpy_softmax(want), rel=1e-12)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("queries", [1, 2])
def test_a_sink_takes_its_share_and_the_lse_counts_it(backend, queries):
    """A sink as heavy as all keys together leaves half of each weight; exp(s - lse) is the weight."""
    q, k, v = row([[0.3, 0.2, 0.5], [0.3, 0.2, 0.5]])
    q, sinks = q.expand(-1, -1, queries, -1), torch.tensor([0.0, -torch.inf], dtype=torch.float64)
    edit = AttentionEdit(stats=StatsRequest(lse=True, full_rows=True))
    out, stats = attend(q, k, v, edit, sinks=sinks, backend=backend)
    want = torch.tensor([[0.15, 0.1, 0.25], [0.3, 0.2, 0.5]]).double()[None, :, None].expand_as(out)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(stats.slices.double(), want, rtol=1e-6, atol=0)
    assert stats.lse[0, :, 0].tolist() == pytest.approx([math.log(2.0), 0.0], abs=1e-6)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("sink", [-1e4, 1e4])
def test_rows_without_a_visible_key_are_zeros_beside_any_sink(backend, sink):
    q, k, v = (torch.randn(1, 2, n, 4) for n in (3, 5, 5))
    visible = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    visible[0, 0, 1] = False
    edit = AttentionEdit(stats=StatsRequest(lse=True, entropy=True))
    sinks = torch.tensor([sink, 0.0])
    out, stats = attend(q, k, v, edit, mask=visible, sinks=sinks, backend=backend)
    assert out.isfinite().all()
    assert not out[:, :, 1].any()
    assert stats.lse[0, :, 1].tolist() == [sink, 0.0]
    assert not stats.entropy[0, :, 1].any()
    plain = attend(q, k, v, mask=visible, backend=backend)[0]
    torch.testing.assert_close(out[0, 0], plain[0, 0] * (sink < 0))


def test_an_edit_under_a_sink_acts_on_keys_only():
    """VAR's rows keep their sum, which the sink has already lowered."""
    q, k, v = row(VAR_ROWS)
    edit = var(0.6).replace(stats=StatsRequest(full_rows=True, edited=True))
    for backend in ("reference", "torch"):
        _, stats = attend(q, k, v, edit, sinks=torch.full((2,), math.log(0.25)), backend=backend)
        assert stats.slices.sum(-1).flatten().tolist() == pytest.approx([0.8, 0.8])
        masses = [x * 0.8 for x in (0.16, 0.04, 0.40, 0.20, 0.20)]
        assert stats.slices[0, 0, 0].tolist() == pytest.approx(masses)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"softcap": 0.0}, BadParameterError, "softcap must be positive"),
        ({"sinks": torch.zeros(3)}, ShapeError, r"sinks must be \[Hq\] = \[2\] float"),
        ({"sinks": torch.zeros(2, dtype=torch.int64)}, ShapeError, r"sinks is .* int64"),
    ],
)
def test_a_soft_cap_or_sinks_without_meaning_are_refused(given, error, said):
    q = k = v = torch.randn(1, 2, 3, 4)
    with pytest.raises(error, match=said):
        attend(q, k, v, **given)
    with pytest.raises(error, match=said):
        attention_stats(q, k, StatsRequest(lse=True), **given)


# --- VAR and GIFT

#: Keys: BOS (text sink), image a (visual sink), b, c, text. Groups: other, text sink, visual sink, image.
VAR_GROUPS = torch.tensor([[1, 2, 3, 3, 0]], dtype=torch.uint8)
VAR_ROWS = [[0.40, 0.10, 0.20, 0.10, 0.20], [0.40, 0.25, 0.05, 0.02, 0.28]]


def var(moved: float, rho: float = 0.5) -> AttentionEdit:
    policy = MoveMass(4, (1, 2), (3,), (2, 3), moved=moved, min_share=rho, min_mass=0.2)
    return AttentionEdit(channels=Channels(VAR_GROUPS, 4), policy=policy)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(
    ("moved", "want"),
    [(0.4, [0.24, 0.06, 1 / 3, 1 / 6, 0.20]), (0.6, [0.16, 0.04, 0.40, 0.20, 0.20]), (0.0, VAR_ROWS[0])],
)
def test_var_hand_example(backend, moved, want):
    out, _ = attend(*row(VAR_ROWS), var(moved), backend=backend)
    assert out[0, 0, 0].tolist() == pytest.approx(want, rel=1e-12)
    assert out[0, 1, 0].tolist() == pytest.approx(VAR_ROWS[1], rel=1e-12), "r = 0.219 < 0.5: left alone"


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_var_head_test_is_inclusive_and_rho_above_one_is_identity(backend):
    half = [[0.25, 0.125, 0.125, 0.25, 0.25]]  # exact in binary: m = 0.5, r = 0.75
    q, k, v = row(half)
    q = q.round(decimals=12)
    at_threshold = var(0.5, rho=0.74)
    assert attend(q, k, v, at_threshold, backend=backend)[0].flatten()[0].item() == pytest.approx(0.125)
    for rho in (0.76, 1.5):
        assert attend(q, k, v, var(0.5, rho), backend=backend)[0].flatten().tolist() == pytest.approx(half[0])


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gift_hand_example(backend):
    """GIFT: image columns times w, question columns times r, renormalised; all from the channels' masses.

    SYS .05 | V .10 .05 .20 | Q .10 | OUT .50 with w = (1, 2, 4) gives r = 1 / .35.
    """

    class Gift:
        channels = 4  # other, V, Q, and w on V

        def __call__(self, masses):
            other, image, question, weighted = masses.unbind(-1)
            r = weighted / image
            total = other + weighted + r * question
            zero = torch.zeros_like(r)
            return torch.stack([1 / total, zero, r / total, 1 / total], -1)

    groups = torch.tensor([[0, 1, 1, 1, 2]], dtype=torch.uint8)  # OUT is generated later: group 0
    w = torch.tensor([[[0.0, 1.0, 2.0, 4.0, 0.0]]])
    edit = AttentionEdit(channels=Channels(groups, 3, w), policy=Gift())
    want = [0.0272373541, 0.0544747082, 0.0544747082, 0.4357976654, 0.1556420233, 0.2723735409]
    out, _ = attend(*row([[0.05, 0.10, 0.05, 0.20, 0.10, 0.50]]), edit, backend=backend)
    assert out.flatten().tolist() == pytest.approx(want, rel=1e-8)


# --- masks


def test_float_and_bool_masks_agree_and_fully_masked_rows_give_zeros():
    q, k, v = (random_like(torch.Generator().manual_seed(0), 2, 4, n, 8) for n in (5, 7, 7))
    k, v = k[:, :2], v[:, :2]
    visible = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    visible[0, :, 2] = False
    visible[1, :, 0, 0] = True
    want = naive(q, k, v, AttentionEdit(), mask=visible)[0].float()
    lowest = torch.finfo(torch.float32).min
    for mask in (
        visible,
        *(torch.zeros(visible.shape).masked_fill(~visible, low) for low in (-torch.inf, lowest)),
    ):
        for backend in ("reference", "torch"):
            out, _ = attend(q, k, v, mask=mask, backend=backend)
            assert not out[0, :, 2].any()
            torch.testing.assert_close(out, want)


def test_causal_rows_are_aligned_to_the_last_key():
    q, k, v = (torch.randn(1, 1, n, 4, dtype=torch.float64) for n in (3, 5, 5))
    visible = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)[None, None]
    want, _ = reference(q, k, v, mask=visible)
    for backend in ("reference", "torch"):
        torch.testing.assert_close(attend(q, k, v, is_causal=True, backend=backend)[0], want)


def test_opening_lets_rows_see_columns_ahead_of_them():
    q, k, v = (torch.randn(1, 2, 4, 4, dtype=torch.float64) for _ in range(3))
    opening = UnmaskRect(
        torch.tensor([[True, False, True, False]]), torch.tensor([[False, False, False, True]])
    )
    visible = torch.ones(4, 4, dtype=torch.bool).tril()
    visible[0, 3] = visible[2, 3] = True
    want, _ = reference(q, k, v, mask=visible[None, None])
    for backend in ("reference", "torch"):
        torch.testing.assert_close(
            attend(q, k, v, AttentionEdit(unmask=(opening,)), is_causal=True, backend=backend)[0], want
        )


def test_bias_that_removes_every_visible_key_empties_the_row():
    q, k, v = (torch.randn(1, 1, 3, 4) for _ in range(3))
    edit = AttentionEdit(
        bias=torch.tensor([[[-torch.inf, 0.0, 0.0]]]), stats=StatsRequest(entropy=True, lse=True, edited=True)
    )
    for backend in ("reference", "torch"):
        out, stats = attend(q, k, v, edit, is_causal=True, backend=backend)
        assert not out[0, 0, 0].any()
        assert out[0, 0, 1:].isfinite().all()
        assert stats.entropy[0, 0, 0] == 0
        assert stats.lse[0, 0, 0] == -torch.inf


# --- statistics


@QUICK
@given(cases(dtypes=(torch.float32,), stats=True))
def test_statistics_equal_those_of_the_materialised_rows(case: Case):
    exact = case.doubled()
    request = case.edit.stats
    edit = case.edit if request.edited else AttentionEdit(unmask=case.edit.unmask)
    _, weights = naive(exact.q, exact.k, exact.v, edit, policy=policy_of(edit), **exact.options)
    _, stats = exact.call(reference)
    batch, _, queries, keys = weights.shape
    active = torch.ones(batch, queries, dtype=torch.bool)
    if request.rows is not None:
        weights = weights[:, :, request.rows.index]
        active = active[:, : weights.shape[2]] if request.rows.active is None else request.rows.active
    weights = weights * active[:, None, :, None]
    u = torch.tensor([[channel_weights(request.channels, b, j) for j in range(keys)] for b in range(batch)])
    got = stats_dict(stats)
    size = case.scale
    torch.testing.assert_close(
        got["masses"], (weights @ u.double()[:, None]).float(), rtol=1e-5, atol=1e-6 * size
    )
    entropy = torch.where(weights > 0, -weights * weights.clamp_min(1e-300).log(), 0.0)
    if (weights >= 0).all():  # a value gain may be negative, which has no entropy
        torch.testing.assert_close(got["entropy"], entropy.sum(-1).float(), rtol=1e-5, atol=1e-5 * size)
    torch.testing.assert_close(got["top_weight"], weights.amax(-1).float(), rtol=1e-5, atol=1e-6 * size)
    torch.testing.assert_close(
        weights.gather(-1, got["top_column"][..., None])[..., 0].float(),
        got["top_weight"],
        rtol=1e-5,
        atol=1e-6 * size,
    )
    if request.columns is not None:
        for b, columns in enumerate(request.columns.tolist()):
            for n, column in enumerate(columns):
                want = weights[b, ..., column] if column >= 0 else torch.zeros_like(weights[b, ..., 0])
                torch.testing.assert_close(
                    got["slices"][b, ..., n], want.float(), rtol=1e-5, atol=1e-6 * size
                )
    elif request.full_rows:
        torch.testing.assert_close(got["slices"], weights.float(), rtol=1e-5, atol=1e-6 * size)
    assert all(t.dtype == (torch.int64 if name == "top_column" else torch.float32) for name, t in got.items())


def test_log_sum_exp_is_that_of_the_masked_scores():
    q, k, v = (torch.randn(2, 2, 4, 8) for _ in range(3))
    active = torch.tensor([[True, True], [False, True]])
    rows = RowSelection(torch.tensor([0, 2]), active)
    scores = (q @ k.mT / 8**0.5).masked_fill(~torch.ones(4, 4, dtype=torch.bool).tril(), -torch.inf)
    want = scores.logsumexp(-1)[:, :, [0, 2]] * active[:, None]
    for backend in ("reference", "torch"):
        _, stats = attend(
            q, k, v, AttentionEdit(stats=StatsRequest(rows=rows, lse=True)), is_causal=True, backend=backend
        )
        torch.testing.assert_close(stats.lse, want)


def test_of_equal_weights_the_first_is_the_top_one():
    q, k, v = torch.zeros(1, 1, 1, 4), torch.randn(1, 1, 5, 4), torch.randn(1, 1, 5, 4)
    for backend in ("reference", "torch"):
        _, stats = attend(q, k, v, AttentionEdit(stats=StatsRequest(top1=True)), backend=backend)
        assert stats.top_column.item() == 0
        assert stats.top_weight.item() == pytest.approx(0.2)
