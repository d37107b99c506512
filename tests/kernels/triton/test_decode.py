"""Fused decoding against the specification, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import QUICK, Case, cases, check_call, make_edit, make_mask, random_like
from torch.utils._python_dispatch import TorchDispatchMode

from regaze.interventions.adhh.policy import DropHeavyChannel
from regaze.interventions.common.move_mass import MoveMass
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.kernels import (
    AttentionEdit,
    Channels,
    RowSelection,
    Scale,
    StatsRequest,
    UnmaskRect,
    Windows,
    attend,
    attention_stats,
)

pytest.importorskip("triton")


from regaze.kernels.triton import arguments, decode, key_ranges, launch, tiling
from regaze.kernels.triton.decode import decode_split
from regaze.kernels.triton.key_ranges import visible_ranges
from regaze.kernels.triton.merge import decode_merge, merge_masses
from regaze.kernels.triton.policy import head_coefficients, triton_part

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in branches not taken

#: Each example takes most of a second in the interpreter.
FEW = settings(QUICK, max_examples=200 if CUDA else 7)
DECODED = (
    "slope",
    "gain",
    "head_score_gain",
    "bias",
    "remove",
    "sink",
    "move_mass",
    "scale",
    "value_gain",
    "open",
)


def call(*args, **kw):
    return attend(*args, backend="triton", **kw)


@pytest.fixture
def splits(monkeypatch):
    """Fixes the number of splits, as a device with plenty of work would."""

    def fix(number: int) -> None:
        chosen = tiling.decode_tiling
        monkeypatch.setattr(
            decode, "decode_tiling", lambda *a, **kw: chosen(*a, **kw)._replace(num_splits=number)
        )

    return fix


# --- the error budget


@FEW
@given(cases().filter(lambda case: case.q.shape[2] <= launch.DECODE_ROWS))
def test_output_within_the_error_budget_of_eager(case: Case):
    check_call(case, "triton", DEVICE)


@FEW
@given(cases(stats=True).filter(lambda case: case.q.shape[2] <= launch.DECODE_ROWS))
def test_statistics_within_the_error_budget(case: Case):
    check_call(case, "triton", DEVICE)


#: Samples, key heads, GQA ratio, Lq, Lk, D, Dv, dtype, mask, parts of the edit: each value of an axis once.
SHAPES = [
    (1, 2, 1, 1, 1, 32, 32, torch.float32, "none", {"move_mass"}),
    (2, 1, 2, 1, 2, 64, 64, torch.float16, "bool", {"bias"}),
    (1, 1, 3, 1, 63, 80, 80, torch.bfloat16, "min", {"move_mass", "slope"}),
    (2, 2, 4, 1, 64, 96, 64, torch.float16, "none", {"scale", "value_gain"}),
    (1, 1, 6, 2, 65, 128, 128, torch.bfloat16, "causal", {"move_mass", "bias"}),
    (2, 1, 7, 1, 127, 128, 128, torch.bfloat16, "inf", {"move_mass", "scale", "head_gain"}),
    (1, 1, 8, 8, 65, 64, 32, torch.bfloat16, "causal", {"gain", "head_score_gain"}),
    (1, 1, 16, 3, 127, 256, 256, torch.float16, "soft", {"move_mass"}),
    (2, 1, 7, 1, 1000, 64, 64, torch.bfloat16, "min", {"move_mass", "remove", "open"}),
    (1, 1, 6, 1, 4097, 128, 128, torch.bfloat16, "none", {"move_mass", "bias"}),
    (1, 1, 40, 1, 70, 32, 32, torch.float32, "per_head", {"scale", "bias"}),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape[:9])))
def test_shapes_dtypes_and_edits(shape):
    check_call(shaped(*shape), "triton", DEVICE)


def shaped(batch, kv_heads, ratio, queries, keys, dim, value_dim, dtype, mask, parts) -> Case:
    g = torch.Generator().manual_seed(keys + ratio)
    heads = kv_heads * ratio
    q = random_like(g, batch, heads, queries, dim).to(dtype)
    k, v = (random_like(g, batch, kv_heads, keys, d).to(dtype) for d in (dim, value_dim))
    rows = RowSelection.where(torch.rand(batch, queries, generator=g) > 0.3) if queries > 1 else None
    edit = make_edit(parts, batch, heads, queries, max(1, keys - 3), g, False, rows)
    groups = torch.randint(0, 7, (batch, keys), generator=g, dtype=torch.uint8)
    stats = StatsRequest(channels=Channels(groups, 7), entropy=True, top1=True, lse=True)
    visible = make_mask(mask, batch, heads, queries, keys, dtype, g)
    return Case(q, k, v, edit.replace(stats=stats), visible, mask == "causal")


RATIOS, DIMS = (1, 2, 3, 4, 6, 7, 8, 16), (32, 64, 80, 96, 128, 256)
#: Every ratio and every dimension among them.
SOME = [(ratio, DIMS[number % len(DIMS)]) for number, ratio in enumerate(RATIOS)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ratio", "dim"),
    [
        pytest.param(*both, marks=[] if both in SOME else [pytest.mark.exhaustive])
        for both in itertools.product(RATIOS, DIMS)
    ],
)
def test_every_ratio_with_every_head_dimension(ratio, dim):
    dtype = (torch.float32, torch.bfloat16, torch.float16)[(ratio + dim // 16) % 3]
    check_call(shaped(2, 1, ratio, 1, 65, dim, dim, dtype, "min", {"move_mass", "slope"}), "triton", DEVICE)


# --- hard rows


def groups_of(keys: int, *starts: int) -> torch.Tensor:
    """[1, keys] groups that count up at every start."""
    return torch.bucketize(torch.arange(keys), torch.tensor(starts), right=True)[None].to(torch.uint8)


@pytest.mark.parametrize("policy", ["move_mass", "scale", "drop", "gaze"])
@pytest.mark.parametrize("held", ["one empty", "all in one", "some"])
def test_policies_on_empty_and_full_channels(policy, held):
    keys = 40
    starts = {"one empty": (10, 20, 20), "all in one": (0, 0, 40), "some": (10, 20, 30)}[held]
    weights = torch.rand(1, 1, keys) * (groups_of(keys, *starts) == 1)
    channels = Channels(groups_of(keys, *starts).clamp_max(2), 3, weights)
    policies = {
        "move_mass": MoveMass(4, (0,), (1, 2), (1, 2), 0.5, 0.1, 0.1),
        "scale": Scale((0.0, 2.0, 0.5, 0.0), renormalise=True),
        "drop": DropHeavyChannel(4, 2, 0.2, (0, 3, 4)),
        "gaze": AmplifyTopHeads(4, image=1, query=2, salient=3, heads=2, query_gain=1.5),
    }
    g = torch.Generator().manual_seed(3)
    q, k, v = random_like(g, 2, 6, 2, 16), *(random_like(g, 2, 2, keys, 16) for _ in range(2))
    request = StatsRequest(channels=channels, entropy=True, edited=True)
    edit = AttentionEdit(
        channels=channels, policy=policies[policy], rows=RowSelection(torch.tensor([1])), stats=request
    )
    sinks = random_like(g, 6) if held == "some" else None
    check_call(Case(q, k, v, edit, None, True, None, sinks), "triton", DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_and_keys_removed_by_bias(dtype):
    g = torch.Generator().manual_seed(5)
    q, k, v = random_like(g, 1, 3, 1, 16), *(random_like(g, 1, 1, 50, 16) for _ in range(2))
    k[:, :, 7:9] *= 3000  # logits of about +-1e4
    bias = torch.zeros(1, 3, 50).masked_fill(torch.rand(1, 3, 50, generator=g) > 0.5, -torch.inf)
    bias[:, 2] = -torch.inf  # no key is left to this head
    stats = StatsRequest(channels=Channels(groups_of(50, 20), 2), entropy=True, top1=True, lse=True)
    for edited in (False, True):
        edit = AttentionEdit(bias=bias, stats=replace(stats, edited=edited))
        check_call(Case(q.to(dtype), k.to(dtype), v.to(dtype), edit, None, False), "triton", DEVICE)


def test_rows_without_a_visible_key_are_zeros():
    q, k, v = (torch.randn(2, 2, n, 16, device=DEVICE) for n in (2, 9, 9))
    mask = torch.ones(2, 1, 2, 9, dtype=torch.bool, device=DEVICE)
    mask[0] = False
    mask[1, :, 0] = False
    request = StatsRequest(entropy=True, top1=True, lse=True, full_rows=True)
    for sinks in (None, torch.zeros(2, device=DEVICE)):
        out, stats = call(q, k, v, AttentionEdit(stats=request), mask=mask, sinks=sinks)
        assert not out[0].any()
        assert not out[1, :, 0].any()
        assert out[1, :, 1].all()
        for part in (stats.entropy, stats.top_weight, stats.top_column, stats.slices.sum(-1)):
            assert not part[0].any()
        assert (stats.lse[0] == (-torch.inf if sinks is None else 0.0)).all()


def test_of_equal_weights_the_first_is_the_top_one_in_whichever_split():
    q, v = torch.zeros(1, 1, 1, 16, device=DEVICE), torch.randn(1, 1, 300, 16, device=DEVICE)
    _, stats = call(q, v, v, AttentionEdit(stats=StatsRequest(top1=True)))
    assert stats.top_column.item() == 0
    mask = torch.arange(300, device=DEVICE)[None, None, None] >= 130
    assert call(q, v, v, AttentionEdit(stats=StatsRequest(top1=True)), mask=mask)[1].top_column.item() == 130


def test_more_channels_than_a_program_holds():
    g = torch.Generator().manual_seed(1)
    q, k, v = random_like(g, 1, 3, 1, 16), *(random_like(g, 1, 1, 30, 16) for _ in range(2))
    groups = torch.randint(0, 7, (1, 30), generator=g, dtype=torch.uint8)
    edit = AttentionEdit(channels=Channels(groups, 7), policy=Scale(tuple(range(7)), True))
    check_call(Case(q, k, v, edit, None, False), "triton", DEVICE)


def test_a_policy_without_a_kernel_runs_in_torch():
    class Half:
        channels = 3

        def __call__(self, masses):
            return torch.stack([masses[..., 0] * 0 + 1, masses[..., 0], masses[..., 2]], -1)

    g = torch.Generator().manual_seed(2)
    q, k, v = random_like(g, 2, 6, 1, 16), *(random_like(g, 2, 2, 140, 16) for _ in range(2))
    edit = AttentionEdit(channels=Channels(groups_of(140, 30, 60), 3), policy=Half())
    check_call(Case(q, k, v, edit, None, False, None, random_like(g, 6)), "triton", DEVICE)


def test_windows_per_head():
    g = torch.Generator().manual_seed(4)
    q, k, v = random_like(g, 2, 6, 2, 16), *(random_like(g, 2, 2, 200, 16) for _ in range(2))
    span = torch.tensor([[1, 5, 40, 70, 150, 300]])
    visible = torch.ones(2, 1, 2, 200, dtype=torch.bool).tril(198)
    visible[0, ..., :33] = False
    visible[1, ..., 170:] = False  # a static cache is longer than what it holds
    request = StatsRequest(entropy=True, lse=True, top1=True, full_rows=True)
    for first, mask in ((None, None), (torch.tensor([33, 0]), visible)):
        edit = AttentionEdit(windows=Windows(span, 4, first), stats=request)
        out, stats = call(q, k, v, edit, mask=mask, is_causal=True)
        want, wanted = attend(q, k, v, edit, mask=mask, is_causal=True, backend="reference")
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
        for got, exact in zip(stats, wanted, strict=True):
            if exact is not None:
                torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["expanded", "sliced", "transposed", "float64"])
def test_masks_of_any_strides(kind):
    g = torch.Generator().manual_seed(6)
    q, k, v = random_like(g, 2, 4, 2, 16), *(random_like(g, 2, 2, 37, 16) for _ in range(2))
    mask = {
        "expanded": (torch.rand(2, 1, 1, 37, generator=g) > 0.3).expand(2, 4, 2, 37),
        "sliced": (torch.rand(2, 1, 5, 51, generator=g) > 0.3)[:, :, 1:3, 7:44],
        "transposed": (torch.rand(2, 1, 37, 2, generator=g) > 0.3).mT,
        "float64": torch.zeros(1, 4, 2, 37).double().masked_fill(torch.rand(37, generator=g) > 0.5, -1e308),
    }[kind]
    check_call(Case(q, k, v, AttentionEdit(stats=StatsRequest(lse=True)), mask, False), "triton", DEVICE)


def test_observe_gives_the_statistics_of_attend():
    g = torch.Generator().manual_seed(7)
    q, k = random_like(g, 2, 6, 1, 16), random_like(g, 2, 2, 150, 16)
    request = StatsRequest(
        rows=RowSelection(torch.tensor([0]), torch.tensor([[True], [False]])),
        channels=Channels(torch.randint(0, 20, (2, 150), generator=g, dtype=torch.uint8), 20),
        entropy=True,
        columns=torch.tensor([[3, -1, 149]]),
    )
    stats = attention_stats(q, k, request, softcap=5.0, backend="triton")
    wanted = attention_stats(q, k, request, softcap=5.0, backend="reference")
    for got, want in zip(stats, wanted, strict=True):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
            assert not got[1].any()


# --- splits


@pytest.mark.parametrize("cuts", [[], [0], [5], [3, 3, 20, 29]])
@pytest.mark.parametrize("sink", [False, True])
def test_merged_splits_are_the_whole_softmax(cuts, sink):
    """The algorithm on its own, in torch: sums relative to each split's own maximum."""
    g = torch.Generator().manual_seed(len(cuts))
    scores, u = random_like(g, 6, 30, scale=8.0), torch.rand(30, 3, generator=g)
    scores[0] = -torch.inf
    scores[1, :20] = -torch.inf
    sums = []
    for a, b in zip([0, *cuts], [*cuts, 30], strict=True):
        part = scores[:, a:b]
        top = part.amax(1) if b > a else torch.full((6,), -torch.inf)
        p = torch.exp(part - top.masked_fill(top == -torch.inf, 0.0)[:, None])
        sums.append(torch.cat([top[:, None], p.sum(1, keepdim=True), p @ u[a:b]], 1))
    sinks = random_like(g, 3, scale=5.0) if sink else None
    extra = torch.full((6, 1), -torch.inf) if sinks is None else sinks.repeat(2)[:, None]
    weights = torch.softmax(torch.cat([scores, extra], 1).double(), 1)[:, :-1].nan_to_num(0.0)
    merged = merge_masses(torch.stack(sums, 1), sinks, None, (2, 3, 1))
    torch.testing.assert_close(merged.view(6, 3).double(), weights @ u.double(), rtol=1e-5, atol=1e-6)


@FEW
@given(cases(dtypes=(torch.float32,), parts=DECODED, stats=True), st.integers(1, 9))
def test_any_number_of_splits(case: Case, number: int):
    if case.q.shape[2] > launch.DECODE_ROWS:
        return
    with pytest.MonkeyPatch.context() as patch:
        chosen = tiling.decode_tiling
        patch.setattr(
            decode,
            "decode_tiling",
            lambda *a, **kw: chosen(*a, **kw)._replace(num_splits=number, block_n=16),
        )
        check_call(case, "triton", DEVICE)


def batch_of(g, *lengths: int):
    """Samples of different lengths, left-padded, with an edit and its statistics; and each sample alone."""
    most = max(lengths)
    q, k, v = (
        random_like(g, len(lengths), 6, 1, 32),
        *(random_like(g, len(lengths), 2, most, 32) for _ in range(2)),
    )
    groups = torch.randint(0, 4, (len(lengths), most), generator=g, dtype=torch.uint8)
    mask = torch.arange(most) >= most - torch.tensor(lengths)[:, None, None, None]
    return [x.to(DEVICE) for x in (q, k, v, groups, mask)]


def edit_of(groups, policy=None):
    channels = Channels(groups, 4)
    policy = policy or MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.1, 0.1)
    request = StatsRequest(channels=channels, entropy=True, top1=True, lse=True)
    return AttentionEdit(channels=channels, policy=policy, stats=request)


def same(a, b) -> None:
    (out, stats), (want, wanted) = a, b
    assert torch.equal(out, want)
    for got, exact in zip(stats, wanted, strict=True):
        assert exact is None or torch.equal(got, exact)


def test_same_bits_from_run_to_run_and_in_any_batch(splits):
    splits(3)
    lengths = (77, 300, 1, 150)
    q, k, v, groups, mask = batch_of(torch.Generator().manual_seed(8), *lengths)
    first = call(q, k, v, edit_of(groups), mask=mask)
    same(call(q, k, v, edit_of(groups), mask=mask), first)
    for i, length in enumerate(lengths):
        one, seen = slice(i, i + 1), slice(300 - length, None)
        out, stats = call(
            q[one], k[one, :, seen], v[one, :, seen], edit_of(groups[one, seen]), mask=mask[one, ..., seen]
        )
        assert torch.equal(out, first[0][one])
        for name in ("masses", "entropy", "top_weight", "lse"):
            assert torch.equal(getattr(stats, name), getattr(first[1], name)[one]), name
        assert torch.equal(stats.top_column + 300 - length, first[1].top_column[one])


def test_an_empty_end_of_the_cache_changes_no_bit(splits):
    """A static cache holds more rows than the mask shows; whatever lies there is not read into a result."""
    splits(4)
    g = torch.Generator().manual_seed(9)
    q, k, v, groups, _ = batch_of(g, 100, 100)
    shown = torch.ones(2, 1, 1, 100, dtype=torch.bool, device=DEVICE)
    want = call(q, k, v, edit_of(groups), mask=shown)
    long_k, long_v = (torch.cat([x, torch.full_like(x, torch.nan)], 2) for x in (k, v))
    padded = torch.cat([shown, ~shown], -1)
    same(call(q, long_k, long_v, edit_of(groups), mask=padded), want)


def test_the_range_of_visible_keys_is_read_from_the_mask():
    mask = torch.zeros(2, 1, 2, 50, dtype=torch.bool, device=DEVICE)
    mask[0, 0, 0, 7:30] = True
    mask[1, 0, 1, 49] = True
    assert merged(visible_ranges(mask, None, None)) == [
        [[7, 30, 29, 23, 0], [50, 0, -1, 0, 0]],
        [[50, 0, -1, 0, 0], [49, 50, 49, 1, 0]],
    ]
    opened = UnmaskRect(torch.tensor([[True, False]]), torch.arange(50)[None] < 3)
    bits = [x.to(DEVICE) for x in arguments.unmask_bits((opened,))]
    assert merged(visible_ranges(mask, *bits))[0] == [[0, 30, 29, 26, 0], [50, 0, -1, 0, 0]]


def merged(ranges):
    """Per sample and row: first key, end, own key, number of visible keys, whether it adds to scores."""
    assert ranges.shape[3:] == (key_ranges.FIELDS.value, key_ranges.CHUNKS.value)
    first, end, own, count, soft = ranges[:, 0].unbind(2)
    return torch.stack([first.amin(2), end.amax(2), own.amax(2), count.sum(2), soft.amax(2)], 2).tolist()


def test_the_tiling_follows_shapes_and_changes_with_the_logarithm_of_the_length():
    def of(keys, batch=1, heads=4):
        shape = (batch, heads, 7, tiling.length_bucket(keys), 128, 4)
        return tiling.decode_tiling(*shape, False, False, 2, 132, "sm_90")

    assert len({of(keys) for keys in range(1025, 2049)}) == 1
    assert of(1 << 16).num_splits == 66  # two programs for each of 132 multiprocessors and 4 heads
    assert of(1).num_splits == 1
    assert of(1 << 16, batch=64, heads=32).num_splits == 1
    assert of(1 << 20, heads=1).num_splits == tiling.MAX_DECODE_SPLITS


# --- policies that couple heads


@pytest.mark.parametrize("heads", [1, 5, 28])
def test_a_policy_that_couples_heads_equals_its_reference(heads):
    g = torch.Generator().manual_seed(heads)
    masses = torch.rand(2, heads, 3, 5, generator=g)
    masses[0, :, 0, 1] = 0.25  # ties: the lower head wins
    masses[1, :, 1] = 0.0
    for most in (0, 2, 40):
        policy = AmplifyTopHeads(5, image=1, query=3, salient=4, heads=most, query_gain=0.7)
        part = triton_part(policy, heads)
        there = masses.to(DEVICE)
        got = head_coefficients(there, None, None, None, masses.shape, part.function, part.numbers)
        torch.testing.assert_close(got.cpu(), policy(masses))


# --- no waiting, and graphs


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_call_neither_reads_from_nor_copies_constants_to_the_device():
    q, k, v, groups, mask = batch_of(torch.Generator().manual_seed(10), 20, 30)
    edit = edit_of(groups).replace(
        bias=torch.randn(1, 1, 9, device=DEVICE), value_gain=torch.rand(1, 6, 9).to(DEVICE)
    )
    call(q, k, v, edit, mask=mask)  # constants are made once
    with Watch() as watch:
        call(q, k, v, edit, mask=mask)
    host = {
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "nonzero",
        "equal",
        "masked_select",
        "lift_fresh",
        "_to_copy",
    }
    assert not host & watch.names


def test_operators_have_faithful_fake_implementations():
    q, k, v, groups, mask = batch_of(torch.Generator().manual_seed(11), 20, 30)
    edit = edit_of(groups)
    rows = launch.Call(q, k, v, edit, mask, 0.2, False, None, None).row_list(None, edited=True, mapped=False)
    torch.library.opcheck(visible_ranges.op, (mask, None, None))
    ranges = visible_ranges(mask, None, None)
    for part in (rows, rows._replace(value=None)):
        channels = (groups, None, 4)
        operands = (part.tensors, ranges, *channels, *channels, True, False, 0.2, None, False)
        torch.library.opcheck(decode_split.op, operands)
        split = decode_split(*operands)
        policy, sums = triton_part(edit.policy, 6), split[:2]
        policy = (policy.function, policy.numbers)
        if part.value is None:
            policy, sums = ("", ()), (None, None)
        nothing = (None,) * 5
        operands = (
            q,
            *sums,
            split[-1],
            torch.zeros(6),
            torch.zeros(1, 6, 1),
            True,
            *nothing,
            *policy,
            True,
            part.value is None,
            True,
            part.value is not None,
        )
        torch.library.opcheck(decode_merge.op, operands)


@torch.no_grad()
@pytest.mark.parametrize("policy", [None, AmplifyTopHeads(4, 1, 2, 3, heads=2)])
def test_a_compiled_call_is_one_graph_with_the_same_bits(policy):
    q, k, v, groups, mask = batch_of(torch.Generator().manual_seed(12), 20, 30)
    edit = edit_of(groups, policy)

    def step(q, k, v, mask):
        return call(q, k, v, edit, mask=mask)

    want = step(q, k, v, mask)
    same(
        torch.compile(step, backend="inductor" if CUDA else "aot_eager", fullgraph=True)(q, k, v, mask), want
    )


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@torch.no_grad()
def test_a_captured_graph_replays_for_every_step_of_a_static_cache():
    q, k, v, groups, mask = batch_of(torch.Generator().manual_seed(13), 500, 900)
    edit = edit_of(groups)
    call(q, k, v, edit, mask=mask)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(q, k, v, edit, mask=mask)
    for shown in (1, 63, 400, 900):
        mask.copy_(torch.arange(900, device=DEVICE) < shown)
        q.normal_()
        graph.replay()
        same(captured, call(q, k, v, edit, mask=mask))
