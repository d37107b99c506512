"""The Numba backend against the specification, which calls its kernel takes, and what it leaves to torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import PARTS, THOROUGH, Case, cases, check_call, random_like

from regaze.errors import ShapeError
from regaze.interventions.adhh.policy import DropHeavyChannel
from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import (
    BACKENDS,
    AttentionEdit,
    BoundEdit,
    Channels,
    RowSelection,
    Scale,
    StatsRequest,
    attend,
    attention_stats,
)
from regaze.kernels.bound import StatsCall, in_one_launch

pytest.importorskip("numba")

from regaze.kernels.numba import launch

RUNS = tuple(part for part in PARTS if part not in ("sink", "open", "source"))


@pytest.fixture
def kernel_calls(monkeypatch):
    """What the kernel was called with."""
    calls, kernel = [], launch.kernel.attend_calls
    monkeypatch.setattr(
        launch.kernel, "attend_calls", lambda *arguments: (calls.append(arguments), kernel(*arguments))
    )
    return calls


def single(case: Case) -> Case:
    """The call with its last row alone, without what the kernel lacks."""
    rows, last = case.edit.rows, case.q.shape[2] - 1
    if rows is not None:
        active = rows.index == last
        chosen = active.expand(len(case.q), -1) if rows.active is None else rows.active & active
        rows = RowSelection(torch.tensor([0]), chosen.any(1, keepdim=True))
    gain = case.edit.head_gain
    gain = gain[..., last:] if gain is not None and gain.dim() == 3 else gain
    mask = case.mask
    if mask is not None:
        mask = mask[..., last:, :]
        mask = (mask if mask.dtype == torch.bool else mask > -1.0)[:, :1].contiguous()
    return Case(
        case.q[:, :, last:], case.k, case.v, case.edit.replace(rows=rows, head_gain=gain), mask, False
    )


@THOROUGH
@given(cases(parts=RUNS, dtypes=(torch.float32,)), st.sampled_from((None, "plain", "edited")))
def test_single_rows_within_the_error_budget(case: Case, reported: str | None):
    case = single(case)
    if reported is not None:
        batch, keys = len(case.q), case.k.shape[2]
        groups = torch.arange(batch * keys).reshape(batch, keys).remainder(3).to(torch.uint8)
        request = StatsRequest(
            channels=Channels(groups, 3), entropy=True, top1=True, lse=True, edited=reported == "edited"
        )
        case.edit = case.edit.replace(stats=request)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "attend_torch", None)  # the kernel runs every one of these
        check_call(case, "numba")


@pytest.fixture
def tensors():
    g = torch.Generator().manual_seed(0)
    query, key, value = (random_like(g, 2, heads, n, 16) for heads, n in ((6, 1), (2, 40), (2, 40)))
    return query, key, value, Channels(torch.randint(0, 4, (2, 30), generator=g, dtype=torch.uint8), 4)


@pytest.mark.parametrize(
    "policy",
    [
        MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.3, 0.1),
        Scale((1.0, 0.5, 2.0, 0.0)),
        Scale((0.0, 0.5, 2.0, 0.0), renormalise=True),
        DropHeavyChannel(4, 2, 0.2, (1, 4, 5)),
    ],
    ids=["move_mass", "scale", "renormalised", "drop_heavy_channel"],
)
def test_compiled_policies_are_their_reference(tensors, policy, kernel_calls):
    query, key, value, channels = tensors
    edit = AttentionEdit(channels=channels, policy=policy)
    with torch.no_grad():
        out = attend(query, key, value, edit, backend="numba")[0]
        want = attend(query, key, value, edit, backend="reference")[0]
        plain = attend(query, key, value, backend="reference")[0]
    assert len(kernel_calls) == 1
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(want, plain, atol=1e-3)


def test_a_subclass_that_redefines_a_policy_runs_in_torch(tensors, kernel_calls):
    class Doubled(Scale):
        def __call__(self, masses):
            return 2 * super().__call__(masses)

    query, key, value, channels = tensors
    edit = AttentionEdit(channels=channels, policy=Doubled((1.0,) * 4))
    with torch.no_grad():
        out = attend(query, key, value, edit, backend="numba")[0]
        plain = attend(query, key, value, backend="reference")[0]
    assert not kernel_calls
    torch.testing.assert_close(out, 2 * plain)


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: (q.bfloat16(), k.bfloat16(), v.bfloat16()),
        lambda q, k, v: (q.double(), k.double(), v.double()),
        lambda q, k, v: (q.expand(-1, -1, 3, -1), k, v),
        lambda q, k, v: (q, k.mT.contiguous().mT, v),
    ],
    ids=["bfloat16", "float64", "rows", "columns apart"],
)
def test_other_calls_run_in_torch_with_its_bits(tensors, change, kernel_calls):
    query, key, value, channels = tensors
    query, key, value = change(query, key, value)
    edit = AttentionEdit(channels=channels, policy=Scale((1.0, 0.5, 2.0, 0.0)))
    with torch.no_grad():
        out = attend(query, key, value, edit, backend="numba")[0]
        assert torch.equal(out, attend(query, key, value, edit, backend="torch")[0])
    assert not kernel_calls


@pytest.mark.parametrize("part", ["sinks", "softcap", "sink", "head_mean_slope", "float mask"])
def test_parts_that_the_kernel_lacks_run_in_torch(tensors, part, kernel_calls):
    query, key, value, _ = tensors
    edit = {
        "sink": AttentionEdit(sink=torch.zeros(1, 6, 1)),
        "head_mean_slope": AttentionEdit(head_mean_slope=torch.full((1, 1, 9), 0.5)),
    }.get(part, AttentionEdit(bias=torch.ones(1, 1, 9)))
    call = {
        "sinks": {"sinks": torch.zeros(6)},
        "softcap": {"softcap": 2.0},
        "float mask": {"mask": torch.linspace(-1, 0, 40).expand(2, 1, 1, -1)},
    }.get(part, {})
    with torch.no_grad():
        out = attend(query, key, value, edit, backend="numba", **call)[0]
        assert torch.equal(out, attend(query, key, value, edit, backend="torch", **call)[0])
    assert not kernel_calls


@pytest.mark.parametrize(
    "request_", [StatsRequest(full_rows=True), StatsRequest(full_rows=True, edited=True)]
)
def test_what_is_reported_does_not_change_the_output(tensors, request_):
    query, key, value, channels = tensors
    edit = AttentionEdit(bias=torch.randn(1, 6, 9), channels=channels, policy=Scale((1.0, 0.5, 2.0, 0.0)))
    with torch.no_grad():
        out = attend(query, key, value, edit, backend="numba")[0]
        masses = StatsRequest(channels=channels, edited=request_.edited)
        for request in (request_, masses):
            reported, stats = attend(query, key, value, edit.replace(stats=request), backend="numba")
            assert torch.equal(reported, out)
            want = attend(query, key, value, edit.replace(stats=request), backend="reference")[1]
            for name, tensor in stats._asdict().items():
                torch.testing.assert_close(tensor, getattr(want, name), rtol=1e-5, atol=1e-6, msg=name)


def test_gradients_run_in_torch(tensors):
    query, key, value, _ = tensors
    out = attend(
        query.requires_grad_(), key, value, AttentionEdit(bias=torch.ones(1, 1, 9)), backend="numba"
    )[0]
    out.sum().backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0


def test_auto_takes_the_kernel_for_single_rows_on_a_cpu_where_numba_is_installed(
    tensors, monkeypatch, kernel_calls
):
    monkeypatch.delenv("REGAZE_BACKEND", raising=False)
    query, key, value, _ = tensors
    edit = AttentionEdit(bias=torch.ones(1, 1, 9))
    with torch.no_grad():
        attend(query, key, value, edit)
        assert len(kernel_calls) == 1
        attend(query.expand(-1, -1, 2, -1), key, value, edit)
        monkeypatch.delitem(BACKENDS, "numba")
        attend(query, key, value, edit)
    assert len(kernel_calls) == 1


def test_a_bound_edit_follows_keys_that_grow_and_values_that_change(tensors, kernel_calls):
    query, key, value, _ = tensors
    edit = AttentionEdit(bias=torch.ones(1, 1, 9)).with_own_values()
    bound, options = BoundEdit(edit), {"mask": None, "is_causal": False, "softcap": None, "sinks": None}
    with torch.no_grad():
        for length, bias in ((30, 1.0), (31, 1.0), (40, -2.0)):
            assert edit.overwrite(AttentionEdit(bias=torch.full((1, 1, 9), bias)))
            out = bound.attend(query, key[:, :, :length], value[:, :, :length], 0.25, 0, **options)[0]
            want = attend(
                query,
                key[:, :, :length],
                value[:, :, :length],
                AttentionEdit(bias=torch.full((1, 1, 9), bias)),
                scaling=0.25,
                backend="reference",
            )[0]
            torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)
    assert len(kernel_calls) == 3


def test_statistics_alone_are_those_of_the_reference(tensors, kernel_calls):
    query, key, _, channels = tensors
    request = StatsRequest(channels=channels, entropy=True, top1=True, lse=True)
    mask = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    mask[0, ..., :25] = False
    with torch.no_grad():
        got = attention_stats(query, key, request, mask=mask, backend="numba")
        want = attention_stats(query, key, request, mask=mask, backend="reference")
    for name, tensor in got._asdict().items():
        torch.testing.assert_close(tensor, getattr(want, name), rtol=1e-5, atol=1e-6, msg=name)
    assert len(kernel_calls) == 1


def test_layers_of_a_step_are_measured_in_one_launch(tensors, kernel_calls):
    query, key, _, channels = tensors
    edit = StatsRequest(channels=channels, entropy=True, top1=True, lse=True).as_edit
    mask = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    mask[0, ..., :25] = False
    options = {"is_causal": False, "softcap": None, "sinks": None}
    layers = [(query, key, mask), (-query, key[:, :, :31], None), (2 * query, key.flip(2), mask)]
    with torch.no_grad():
        calls = [
            StatsCall(BoundEdit(edit), q, k, 0.25, {**options, "mask": shown}, 0) for q, k, shown in layers
        ]
        first, again = in_one_launch(calls), in_one_launch(calls)
        single = [call.run() for call in calls]
        assert [count for _, count in kernel_calls] == [3, 3, 1, 1, 1]
    for name, together in first._asdict().items():
        assert together is None or together.data_ptr() != getattr(again, name).data_ptr()
        for number, (q, k, shown) in enumerate(layers):
            want = attention_stats(q, k, edit.stats, mask=shown, scaling=0.25, backend="reference")
            found = None if together is None else together[number]
            torch.testing.assert_close(found, getattr(want, name), rtol=1e-5, atol=1e-6, msg=name)
            assert found is None or torch.equal(found, getattr(single[number], name))
            assert found is None or torch.equal(found, getattr(again, name)[number])


def test_layers_with_requests_or_heads_of_their_own_have_no_common_launch(tensors, kernel_calls):
    query, key, _, channels = tensors
    options = {"mask": None, "is_causal": False, "softcap": None, "sinks": None}
    masses, entropy = StatsRequest(channels=channels).as_edit, StatsRequest(entropy=True).as_edit
    for pair in (((masses, query), (entropy, query)), ((masses, query), (masses, query[:, :4]))):
        kernel_calls.clear()
        with torch.no_grad():
            calls = [StatsCall(BoundEdit(edit), q, key, 0.25, options, 0) for edit, q in pair]
            assert in_one_launch(calls) is None
            found = [call.run() for call in calls]
        assert [count for _, count in kernel_calls] == [1, 1]
        assert found[0].entropy is None
        torch.testing.assert_close(found[0].masses.sum(-1), torch.ones(2, 6, 1))


@pytest.mark.parametrize("calls_before", [0, 1])
def test_layers_that_do_not_fit_together_are_refused(tensors, calls_before):
    query, key, _, channels = tensors
    edit, options = (
        StatsRequest(channels=channels).as_edit,
        {"is_causal": False, "softcap": None, "sinks": None},
    )
    masks = [torch.ones(2, 1, 1, keys, dtype=torch.bool) for keys in (40, 39)]
    first, second = (StatsCall(BoundEdit(edit), query, key, 0.25, {**options, "mask": m}, 0) for m in masks)
    with torch.no_grad():
        for _ in range(calls_before):
            in_one_launch([first])
        with pytest.raises(ShapeError, match="mask must be"):
            in_one_launch([first, second])


def test_a_call_about_the_last_row_is_made_of_it(tensors, kernel_calls):
    _, key, _, channels = tensors
    query = torch.randn(2, 6, 5, 16, generator=torch.Generator().manual_seed(5))
    request = StatsRequest(channels=channels)
    options = {"mask": None, "is_causal": True, "softcap": None, "sinks": None}
    last, middle = (
        StatsCall(BoundEdit(request.about(rows).as_edit), query, key, 0.25, options, 0)
        for rows in (RowSelection(torch.tensor([4])), RowSelection(torch.tensor([3])))
    )
    assert middle.of_last_row() is middle
    assert last.of_last_row().edit.edit is request.as_edit
    with torch.no_grad():
        got = in_one_launch([last.of_last_row()]).masses[0]
        want = attention_stats(query, key, request, is_causal=True, scaling=0.25, backend="reference").masses
    assert [count for _, count in kernel_calls] == [1]
    torch.testing.assert_close(got, want[:, :, 4:], rtol=1e-5, atol=1e-6)


def test_nan_scores_stay_nan(tensors):
    query, key, value, _ = tensors
    query = query.clone()
    query[0, 0] = torch.nan
    with torch.no_grad():
        out = attend(query, key, value, AttentionEdit(bias=torch.ones(1, 1, 9)), backend="numba")[0]
    assert out[0, 0].isnan().all()
    assert not out[0, 1:].isnan().any()
