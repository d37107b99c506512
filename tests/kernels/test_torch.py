"""The torch path against the specification, by error budget; gradients, memory, synchronisation, decoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import QUICK, THOROUGH, Case, cases, eager, random_like, stats_dict, within_budget
from torch.utils._python_dispatch import TorchDispatchMode

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
    torch_backend,
)
from regaze.kernels.torch_rows import LARGE_ELEMENTS


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny tensors: a second thread only waits, for long when the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _torch_alone(monkeypatch):
    """Numba would take single rows where it is installed."""
    monkeypatch.setenv("REGAZE_BACKEND", "torch")


def check_budget(case: Case) -> None:
    out, stats = case.call(attend, backend="torch")
    exact, exact_stats = case.doubled().call(attend, backend="reference")
    assert out.dtype == case.q.dtype
    assert out.shape == exact.shape
    error, allowed = within_budget(out, exact, case.call(eager), case.scale)
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
    if case.edit.stats is not None:
        _, single = case.call(attend, backend="reference")
        check_stats(stats_dict(stats), stats_dict(exact_stats), stats_dict(single), case)


def check_stats(got: dict, exact: dict, single: dict, case: Case) -> None:
    """Each within twice the error of the fp32 specification, and a few roundings, of the fp64 one."""
    assert got.keys() == exact.keys()
    for name, tensor in got.items():
        assert tensor.shape == exact[name].shape, name
        if name == "top_column" or tensor.numel() == 0:
            continue
        finite = exact[name].isfinite()
        assert torch.equal(finite, tensor.isfinite()), name
        want = exact[name].double()[finite]
        size = max(1.0, want.abs().max().item()) if want.numel() else 1.0
        allowed = 2 * (single[name].double()[finite] - want).abs().max().item() if want.numel() else 0.0
        error = (tensor.double()[finite] - want).abs().max().item() if want.numel() else 0.0
        assert error <= allowed + 8 * torch.finfo(torch.float32).eps * size * case.scale, name


@THOROUGH
@given(cases())
def test_output_within_the_error_budget_of_eager(case: Case):
    check_budget(case)


@QUICK
@given(cases(dtypes=(torch.float32,), stats=True), st.sampled_from([1, 100, 1 << 24]))
def test_output_and_statistics_do_not_depend_on_the_block_size(case: Case, block: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_backend, "BLOCK_ELEMENTS", block)
        check_budget(case)


@QUICK
@given(cases(parts=("head_mean", "slope", "gain", "bias", "value_gain")))
def test_head_mean_slope_within_the_error_budget(case: Case):
    check_budget(case)


@QUICK
@given(
    cases(
        parts=("spread", "slope", "gain", "bias", "remove", "move_mass", "value_gain", "open"),
        dtypes=(torch.float32,),
        stats=True,
    )
)
def test_a_spread_within_the_error_budget(case: Case):
    check_budget(case)


@QUICK
@given(cases(parts=("move_mass", "scale", "bias"), dtypes=(torch.float64,)))
def test_fp64_is_exact(case: Case):
    out, _ = case.call(attend, backend="torch")
    torch.testing.assert_close(out, case.call(attend, backend="reference")[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ratio", [1, 3, 6, 7, 8])
def test_decode_of_a_padded_batch_equals_its_samples_alone(ratio):
    g = torch.Generator().manual_seed(ratio)
    q, k, v = random_like(g, 3, 2 * ratio, 1, 16), *(random_like(g, 3, 2, 29, 16) for _ in range(2))
    groups = torch.randint(0, 4, (3, 23), generator=g, dtype=torch.uint8)
    policy = MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.3, 0.1)
    padding = [0, 5, 11]
    mask = torch.ones(3, 1, 1, 29, dtype=torch.bool)
    for sample, padded in enumerate(padding):
        mask[sample, ..., :padded] = False
    out, _ = attend(q, k, v, AttentionEdit(channels=Channels(groups, 4), policy=policy), mask=mask)
    for sample, padded in enumerate(padding):
        one = slice(sample, sample + 1)
        edit = AttentionEdit(channels=Channels(groups[one, padded:], 4), policy=policy)
        alone, _ = attend(q[one], k[one, :, padded:], v[one, :, padded:], edit)
        torch.testing.assert_close(out[one], alone, rtol=0, atol=1e-5)


# --- policies keep their promises


@THOROUGH
@given(
    cases(parts=("move_mass",), dtypes=(torch.float64,)),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 0.5),
)
def test_redistribute_moves_mass_and_nothing_else(case: Case, moved: float, share: float, mass: float):
    batch, keys = case.q.shape[0], case.k.shape[2]
    groups = torch.randint(0, 4, (batch, keys), dtype=torch.uint8)
    policy = MoveMass(4, (1, 2), (3,), (2, 3), moved, share, mass)
    request = StatsRequest(full_rows=True)
    edit = AttentionEdit(channels=Channels(groups, 4), policy=policy, rows=case.edit.rows, stats=request)
    before = attend(case.q, case.k, case.v, edit, **case.options)[1].slices.double()
    edit = edit.replace(stats=StatsRequest(full_rows=True, edited=True))
    after = attend(case.q, case.k, case.v, edit, **case.options)[1].slices.double()
    assert (after >= 0).all()
    torch.testing.assert_close(after.sum(-1), before.sum(-1), rtol=0, atol=1e-6)
    group = groups[:, None, None].expand_as(before).long()
    assert torch.equal(after[group == 0], before[group == 0]), "other keys keep their weights to the bit"
    assert (after[group == 3] >= before[group == 3]).all()
    held = {c: before.masked_fill(group != c, 0).sum(-1) for c in range(4)}
    gate, receiver = held[2] + held[3], held[3]
    # Well inside or outside the head test, so that rounding cannot decide it.
    passed = (gate > mass + 1e-6) & (receiver > share * gate + 1e-6) & (receiver > 1e-6)
    failed = (gate < mass - 1e-6) | (receiver < share * gate - 1e-6)
    selected = torch.ones_like(passed)
    if edit.rows is not None:
        chosen = torch.zeros(batch, 1, case.q.shape[2], dtype=torch.bool)
        chosen[:, 0, edit.rows.index] = True if edit.rows.active is None else edit.rows.active
        selected = chosen.expand_as(passed)
    assert torch.equal(after[failed | ~selected], before[failed | ~selected])
    edited = (passed & selected)[..., None]
    gain = 1 + moved * (held[1] + held[2]) / receiver
    for which, factor in ((group == 3, gain[..., None]), ((group == 1) | (group == 2), 1 - moved)):
        want = (before * factor).masked_fill(~(which & edited), 0)
        torch.testing.assert_close(after.masked_fill(~(which & edited), 0), want, rtol=1e-4, atol=1e-6)


def test_scale_renormalised_keeps_the_row_mass_and_never_empties_a_row():
    masses = torch.tensor([[[[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]])
    coefficients = Scale((2.0, 0.0, 1.0), renormalise=True)(masses)
    assert (masses * coefficients).sum(-1).flatten().tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert coefficients[0, 0, 1].tolist() == [1.0, 1.0, 1.0]
    assert coefficients[0, 0, 0].tolist() == pytest.approx([2 / 1.2, 0.0, 1 / 1.2])
    assert Scale((2.0, 0.0, 1.0))(masses)[0, 0, 0].tolist() == [2.0, 0.0, 1.0]


# --- what is left alone is left alone to the bit


def test_no_edit_and_rows_not_selected_are_bit_equal_to_sdpa():
    q, k, v = torch.randn(2, 6, 9, 16), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.equal(attend(q, k, v, is_causal=True)[0], plain)
    edit = AttentionEdit(rows=RowSelection(torch.tensor([3, 7])), bias=torch.randn(1, 1, 5))
    changed = (attend(q, k, v, edit, is_causal=True)[0] != plain).any(-1).any(1)
    assert changed.any(0).nonzero().flatten().tolist() == [3, 7]


@pytest.mark.parametrize("queries", [1, 4])
def test_an_empty_selection_edits_nothing(queries):
    q, k, v = torch.randn(1, 2, queries, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    none = RowSelection(torch.empty(0, dtype=torch.int64))
    edit = AttentionEdit(
        rows=none, bias=torch.randn(1, 1, 6), stats=StatsRequest(rows=none, lse=True, top1=True)
    )
    for backend in ("reference", "torch"):
        out, stats = attend(q, k, v, edit, backend=backend)
        torch.testing.assert_close(out, attend(q, k, v)[0])
        assert stats.lse.shape == stats.top_weight.shape == (1, 2, 0)


def test_keys_after_the_named_ones_are_neutral_as_the_cache_grows():
    """One edit serves every decode step, and gives what an edit spelt out for all keys gives."""
    g = torch.Generator().manual_seed(0)
    policy = MoveMass(3, (1,), (2,), (1, 2), 0.5, 0.0, 0.0)
    groups = torch.randint(0, 3, (2, 5), generator=g, dtype=torch.uint8)
    columns = {name: random_like(g, 2, 1, 5) for name in ("score_slope", "score_gain", "bias", "value_gain")}
    edit = AttentionEdit(channels=Channels(groups, 3), policy=policy, **columns)
    for keys in (5, 6, 7, 11, 40, 41, 8):
        q, k, v = random_like(g, 2, 4, 1, 8), *(random_like(g, 2, 2, keys, 8) for _ in range(2))
        spelt = {
            name: torch.cat([t, torch.full((2, 1, keys - 5), 1.0 if "gain" in name else 0.0)], -1)
            for name, t in columns.items()
        }
        padded = torch.cat([groups, torch.zeros(2, keys - 5, dtype=torch.uint8)], -1)
        want = AttentionEdit(channels=Channels(padded, 3), policy=policy, **spelt)
        assert torch.equal(attend(q, k, v, edit)[0], attend(q, k, v, want)[0])
        check_budget(Case(q, k, v, edit, None, False))


# --- autograd


def gradient_inputs():
    g = torch.Generator().manual_seed(3)
    q, k, v = random_like(g, 1, 4, 5, 3), *(random_like(g, 1, 2, 6, d) for d in (3, 2))
    bias, slope = random_like(g, 1, 1, 4), random_like(g, 1, 4, 4, scale=0.2)
    gains = random_like(g, 1, 1, 4), random_like(g, 1, 4)
    return [t.double().requires_grad_() for t in (q, k, v, bias, slope, *gains)]


@pytest.mark.parametrize("block", [1, 1 << 24])
def test_gradients_flow_through_every_stage(block, monkeypatch):
    monkeypatch.setattr(torch_backend, "BLOCK_ELEMENTS", block)
    groups = torch.tensor([[0, 1, 2, 3, 3, 2]], dtype=torch.uint8)
    policy = MoveMass(4, (1, 2), (3,), (2, 3), 0.5, 0.1, 0.05)
    visible = torch.ones(1, 1, 5, 6, dtype=torch.bool).tril(1)
    visible[..., 3, :] = False  # a fully masked row

    def call(q, k, v, bias, slope, value_gain, head_gain):
        edit = AttentionEdit(
            rows=RowSelection(torch.tensor([1, 3, 4])),
            bias=bias,
            score_slope=slope,
            channels=Channels(groups, 4),
            policy=policy,
            value_gain=value_gain,
            head_gain=head_gain,
        )
        return attend(q, k, v, edit, mask=visible, backend="torch")[0]

    assert torch.autograd.gradcheck(call, gradient_inputs())


def test_gradients_are_finite_where_a_bias_empties_a_row_and_receivers_hold_nothing():
    q, k, v = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    bias = torch.tensor([[[-torch.inf, 0.0, 0.0]]])
    groups = torch.tensor([[1, 0, 0]], dtype=torch.uint8)  # no key in the receiving group 2
    edit = AttentionEdit(
        bias=bias, channels=Channels(groups, 3), policy=MoveMass(3, (1,), (2,), (1, 2), 0.5, 0.0, 0.0)
    )
    out, _ = attend(q, k, v, edit, is_causal=True)
    out.sum().backward()
    assert all(t.grad.isfinite().all() for t in (q, k, v))


def test_a_learned_bias_gets_its_gradient_in_every_step():
    """Also after a first call without gradients, with more keys than it names."""
    bias = torch.zeros(1, 1, 3, requires_grad=True)
    edit = AttentionEdit(bias=bias)
    q, k, v = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 7, 4), torch.randn(1, 1, 7, 4)
    with torch.no_grad():
        attend(q, k, v, edit)
    for _ in range(2):
        bias.grad = None
        attend(q, k, v, edit)[0].sum().backward()
        assert bias.grad.abs().sum() > 0


def test_constants_made_in_inference_mode_serve_training_later():
    policy = MoveMass(3, (1,), (2,), (1, 2), 0.123456, 0.0, 0.0)
    with torch.inference_mode():
        policy(torch.rand(1, 1, 1, 3))
    masses = torch.rand(1, 1, 1, 3, requires_grad=True)
    policy(masses).sum().backward()
    assert masses.grad.isfinite().all()


# --- memory and synchronisation


class Watch(TorchDispatchMode):
    """The largest tensor that any operation returns, in bytes of its storage, and the operations."""

    def __init__(self):
        super().__init__()
        self.largest, self.names = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@torch.no_grad()
def test_editing_and_recording_a_few_rows_of_a_long_prompt_takes_no_square_matrix():
    length, rows = 4096, RowSelection(torch.arange(4085, 4093))
    q, k, v = torch.randn(1, 2, length, 16), torch.randn(1, 1, length, 16), torch.randn(1, 1, length, 16)
    channels = Channels(torch.randint(0, 4, (1, length), dtype=torch.uint8), 4)
    policy = MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.1, 0.1)
    edit = AttentionEdit(rows=rows, channels=channels, policy=policy, bias=torch.randn(1, 1, length))
    with Watch() as watch:
        attend(q, k, v, edit.replace(stats=StatsRequest(rows, channels, entropy=True)), is_causal=True)
    assert watch.largest <= 4 * q.numel(), f"{watch.largest} bytes"
    assert watch.largest < length * length // 8


@torch.no_grad()
def test_editing_every_row_keeps_to_the_block_budget(monkeypatch):
    monkeypatch.setattr(torch_backend, "BLOCK_ELEMENTS", 1 << 15)
    q, k, v = torch.randn(1, 2, 1023, 8), torch.randn(1, 2, 1023, 8), torch.randn(1, 2, 1023, 8)
    edit = AttentionEdit(bias=torch.randn(1, 1, 1023), stats=StatsRequest(lse=True))
    with Watch() as watch:
        out, _ = attend(q, k, v, edit, is_causal=True)
    assert watch.largest <= 4 * (1 << 15)
    torch.testing.assert_close(out, attend(q, k, v, edit, is_causal=True, backend="reference")[0])


HOST = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "equal",
    "masked_select",
    "lift_fresh",
    "_unique2",
}


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, 6])
def test_a_layer_call_neither_reads_from_nor_copies_constants_to_the_device(queries):
    q, k, v = torch.randn(2, 6, queries, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    active = torch.tensor([[True], [False]])
    channels = Channels(torch.randint(0, 4, (2, 7), dtype=torch.uint8), 4)
    edit = AttentionEdit(
        rows=RowSelection(torch.tensor([0]), active),
        channels=channels,
        policy=MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.1, 0.1),
        value_gain=torch.rand(1, 1, 7),
        bias=torch.randn(1, 1, 7),
        unmask=(UnmaskRect(torch.ones(2, queries, dtype=torch.bool), torch.ones(2, 7, dtype=torch.bool)),),
        stats=StatsRequest(channels=channels, entropy=True, top1=True, lse=True),
    )
    attend(q, k, v, edit, is_causal=True)  # constants and the rows of unmask are made once
    with Watch() as watch:
        attend(q, k, v, edit, is_causal=True)
        attend(q, k, v, edit.replace(policy=Scale((1.0, 2.0, 1.0, 0.5), True), unmask=()), is_causal=True)
    first = watch.names
    with Watch() as watch:
        attend(q, k, v, edit.replace(policy=Scale((1.0, 2.0, 1.0, 0.5), True), unmask=()), is_causal=True)
    assert not HOST & set(first[: len(first) - len(watch.names)])
    assert not HOST & set(watch.names)


@torch.no_grad()
def test_decoding_takes_few_operations():
    q, k, v = torch.randn(1, 6, 1, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    channels = Channels(torch.randint(0, 4, (1, 7), dtype=torch.uint8), 4)
    edit = AttentionEdit(channels=channels, policy=MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.1, 0.1))
    attend(q, k, v, edit)
    views = {
        "view",
        "_unsafe_view",
        "expand",
        "transpose",
        "unsqueeze",
        "slice",
        "unbind",
        "t",
        "alias",
        "select",
    }
    with Watch() as watch:
        attend(q, k, v, edit)
    computing = [name for name in watch.names if name not in views]
    assert len(computing) <= 20, computing


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "batch"), [(6, 2, 1), (7, 1, 3), (4, 4, 2)])
def test_masses_alone_of_a_short_row_are_those_of_the_specification(heads, kv_heads, batch, masked):
    """A kernel of its own, as the cache grows and for edits that share the request."""
    g = torch.Generator().manual_seed(heads)
    groups = torch.randint(0, 3, (batch, 5), generator=g, dtype=torch.uint8)
    request = StatsRequest(channels=Channels(groups, 3, torch.rand(1, batch, 5, generator=g)))
    for keys in (5, 6, 9, 23, 7):
        q = random_like(g, batch, heads, 1, 8)
        k = random_like(g, batch, kv_heads, keys, 8)
        mask = torch.rand(batch, 1, 1, keys, generator=g) > 0.3 if masked else None
        if mask is not None:
            mask[0] = False  # a row that sees nothing
        got = attention_stats(q, k, request, mask=mask, backend="torch").masses
        want = attention_stats(q.double(), k.double(), request, mask=mask, backend="reference").masses
        assert got.shape == (batch, heads, 1, 4)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    q.requires_grad_()
    attention_stats(q, k, request, mask=mask, backend="torch").masses.square().sum().backward()
    assert q.grad.isfinite().all()


def test_what_one_call_keeps_serves_the_next_in_another_mode():
    """Made in inference mode, used with gradients; learned channel weights get theirs in every call."""
    g = torch.Generator().manual_seed(2)
    q, k, v = random_like(g, 1, 4, 1, 8), *(random_like(g, 1, 2, 9, 8) for _ in range(2))
    groups = torch.randint(0, 3, (1, 9), generator=g, dtype=torch.uint8)
    request = StatsRequest(channels=Channels(groups, 3))
    edit = AttentionEdit(channels=Channels(groups, 3), policy=MoveMass(3, (1,), (2,), (1, 2), 0.5, 0.1, 0.1))
    with torch.inference_mode():
        attention_stats(q, k, request)
        attend(q, k, v, edit)
    q.requires_grad_()
    (attention_stats(q, k, request).masses.square().sum() + attend(q, k, v, edit)[0].sum()).backward()
    assert q.grad.isfinite().all()
    learned = torch.rand(1, 1, 9, generator=g).requires_grad_()
    request = StatsRequest(channels=Channels(groups, 3, learned))
    for _ in range(2):
        learned.grad = None
        attention_stats(q, k, request).masses.square().sum().backward()
        assert learned.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("share", "mass"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.5, 0.3), (1.0, 0.0), (2.0, 0.1)]
)
def test_a_folded_redistribution_is_that_of_the_policy(share, mass):
    """Decoding folds the policy into its channels; the head tests, empty receivers and masked rows stay."""
    g = torch.Generator().manual_seed(5)
    policy = MoveMass(4, (1, 2), (3,), (2, 3), 0.6, share, mass)
    q, k, v = random_like(g, 5, 6, 1, 8, scale=2.0), *(random_like(g, 5, 2, 19, 8) for _ in range(2))
    groups = torch.randint(0, 4, (5, 11), generator=g, dtype=torch.uint8)
    groups[0].masked_fill_(groups[0] == 3, 0)  # no receiver
    groups[1] = 3  # nobody gives
    mask = torch.ones(5, 1, 1, 19, dtype=torch.bool)
    mask[2] = False
    edit = AttentionEdit(channels=Channels(groups, 4), policy=policy)
    for learned in (False, True):
        out, _ = attend(q.requires_grad_(learned), k, v, edit, mask=mask, backend="torch")
        want, _ = attend(q.double(), k.double(), v.double(), edit, mask=mask, backend="reference")
        torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=2e-6)
    assert not out[2].any()


_VIEWS = {"view", "reshape", "flatten", "mT", "narrow", "expand", "split_with_sizes", "transpose", "slice"}
_VIEWS |= {"unsqueeze", "_unsafe_view"}


@torch.inference_mode()
@pytest.mark.parametrize(("part", "most"), [("masses", 1), ("policy", 11), ("slope", 7)])
def test_a_single_row_takes_few_operations(part, most):
    """Views aside: at decode a short row costs as much as the operations that it takes."""
    q, k = torch.randn(1, 6, 1, 32), torch.randn(1, 2, 40, 32)
    channels = Channels(torch.randint(0, 4, (1, 30), dtype=torch.uint8), 4)
    edit = {
        "masses": StatsRequest(channels=channels).as_edit,
        "policy": AttentionEdit(channels=channels, policy=MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.3, 0.1)),
        "slope": AttentionEdit(score_slope=torch.rand(1, 1, 30)),
    }[part]

    def run():
        if part == "masses":
            return attention_stats(q, k, edit.stats)
        return attend(q, k, k, edit)

    run()
    with Watch() as watch:
        run()
    assert len([name for name in watch.names if name not in _VIEWS]) <= most, watch.names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [2, 6, 14])
def test_rows_over_many_keys_have_their_own_products(dtype, heads):
    """From 2**18 key elements on: plain rows without SDPA, keys before few rows; the answer is the same."""
    g = torch.Generator().manual_seed(heads)
    q = random_like(g, 1, heads, 1, 32).to(dtype)
    k, v = (random_like(g, 1, 2, 4099, 32).to(dtype) for _ in range(2))
    assert k.numel() >= LARGE_ELEMENTS
    mask = torch.rand(1, 1, 1, 4099, generator=g) > 0.2
    groups = torch.randint(0, 4, (1, 4000), generator=g, dtype=torch.uint8)
    policy = MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.3, 0.1)
    request = StatsRequest(channels=Channels(groups, 4), lse=True, top1=True)
    request = request if dtype == torch.float32 else None  # the products of bfloat16 are rounded
    for edit in (
        AttentionEdit(),
        AttentionEdit(head_gain=torch.rand(1, heads, generator=g), stats=request),
        AttentionEdit(channels=Channels(groups, 4), policy=policy, stats=request),
    ):
        check_budget(Case(q, k, v, edit, mask, False))
