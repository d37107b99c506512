"""Prefill by the Triton kernels against the specification, by error budget; without a GPU interpreted."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from kernel_cases import PARTS, Case, cases, random_like, stats_dict

from regaze.interventions.adhh.policy import DropHeavyChannel
from regaze.interventions.common.move_mass import MoveMass
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.interventions.spin.policy import DampLowHeads
from regaze.kernels import (
    AttentionEdit,
    Channels,
    RowSelection,
    Scale,
    StatsRequest,
    attend,
    attention_stats,
    torch_backend,
)
from regaze.kernels.reference import attend_reference, visibility
from regaze.kernels.spec import Windows

pytest.importorskip("triton")

from prefill_cases import DEVICE, call_of, check, make_case, moved, request, run

from regaze.kernels.triton import block_mask, call, prefill, row_list, row_stats, tiling, weight_slices
from regaze.kernels.triton.prefill import attend_prefill, prefill_stats

PATIENT = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture
def split(monkeypatch):
    """Keys split over many programs, as on a large device."""
    monkeypatch.setattr(row_list, "MIN_SPLIT_BLOCKS", 1)
    monkeypatch.setattr(row_list, "processors", lambda device: 1000)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles in few rows and keys."""
    monkeypatch.setattr(call, "tiling", lambda *shape, **kind: tiling.Tiling(16, 16, 4, 2))


# --- the specification


@settings(max_examples=8, **PATIENT)
@given(cases(stats=True))
def test_random_edits_and_statistics(case: Case):
    check(case)


@pytest.mark.slow
@settings(max_examples=200 if DEVICE != "cpu" else 12, **PATIENT)
@given(cases(stats=True, dtypes=(torch.float32, torch.bfloat16, torch.float16)))
def test_many_random_edits_and_statistics(case: Case):
    check(case)


SHAPES = [  # queries, keys, ratio, dim, dtype: each value of each kind with others
    (1, 65, 1, 32, torch.bfloat16),
    (2, 63, 3, 80, torch.float16),
    (63, 64, 7, 32, torch.float32),
    (64, 65, 1, 96, torch.bfloat16),
    (65, 127, 8, 32, torch.float32),
    (127, 127, 1, 128, torch.float16),
    (300, 300, 1, 32, torch.bfloat16),
]


@pytest.mark.parametrize(("queries", "keys", "ratio", "dim", "dtype"), SHAPES)
def test_lengths_head_dimensions_ratios_and_dtypes(queries, keys, ratio, dim, dtype):
    some = RowSelection.where(torch.rand(1, queries, generator=torch.Generator().manual_seed(queries)) > 0.8)
    shape = {"queries": queries, "keys": keys, "ratio": ratio, "dim": dim, "dtype": dtype, "batch": 1}
    check(make_case(("move_mass", "bias"), mask="bool", rows=some, **shape))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_an_edit_on_some_rows_and_in_several_tiles(part, small_tiles):
    rows = RowSelection.where(torch.rand(2, 23, generator=torch.Generator().manual_seed(1)) > 0.5)
    check(make_case((part,), rows=rows, mask="soft", stats=True))


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "min", "inf", "soft", "per_head"])
def test_every_kind_of_mask_in_several_tiles(mask, small_tiles):
    check(make_case(("scale", "open"), mask=mask, queries=18, keys=41, stats=True))


@pytest.mark.parametrize("parts", [("move_mass",), ("bias", "value_gain"), ()])
def test_keys_split_over_programs(parts, split, small_tiles):
    case = make_case(parts, queries=17, keys=70, mask="bool", stats=True)
    assert (
        call.Call(case.q, case.k, case.v, case.edit, case.mask, 1.0, False, None, None)
        .row_list(None, edited=True)
        .num_splits
        == 5
    )
    check(replace(case, sinks=torch.tensor([1.0, -2.0])))


def test_soft_cap_sinks_and_a_smaller_value_dimension():
    sinks = torch.tensor([3.0, -1.0, 0.0])
    case = make_case(("scale",), ratio=3, value_dim=5, stats=True, softcap=2.0, sinks=sinks)
    check(case)
    check(replace(case, edit=AttentionEdit(stats=case.edit.stats)))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_windows(masked, padded, small_tiles):
    case = make_case(("bias",), queries=20, keys=20 if padded else 35, ratio=3, stats=True)
    first = torch.tensor([0, 7]) if padded else None
    windows = Windows(torch.tensor([[1, 5, 100]]), 2, first)
    if masked:
        visible = torch.ones(20, case.k.shape[2], dtype=torch.bool).tril(case.k.shape[2] - 20)
        case = replace(case, mask=visible[None, None].expand(2, 1, -1, -1), is_causal=False)
    shape = (20, case.k.shape[2], case.is_causal)
    seen = visibility(case.mask, *shape, (), case.q.device, windows)[0]
    same = replace(case, mask=seen.expand(2, -1, -1, -1), is_causal=False)
    check(replace(case, edit=case.edit.replace(windows=windows)), eager_case=same)


POLICIES = [
    MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.0, 0.0),
    Scale((1.0, 0.0, 2.0, 0.5), renormalise=True),
    Scale((1.0, 0.0, 2.0, 0.5)),
    DropHeavyChannel(4, 1, 0.25, (0, 2)),
    AmplifyTopHeads(4, 1, 2, 3, 2, 1.5),
    DampLowHeads(4, 1, 2, 0.25),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("edited", [False, True])
def test_every_policy(policy, edited):
    case = make_case(ratio=4, mask="inf", seed=5)
    g = torch.Generator().manual_seed(7)
    groups = torch.randint(0, 3, (2, 20), generator=g, dtype=torch.uint8)
    salient = torch.rand(1, 2, 20, generator=g) * (groups == 1)
    channels = Channels(groups, 3, salient) if isinstance(policy, AmplifyTopHeads) else Channels(groups, 4)
    rows = RowSelection.where(torch.rand(2, 23, generator=g) > 0.3)
    asked = request(2, 23, 23, g, edited=edited)
    check(replace(case, edit=AttentionEdit(rows, channels=channels, policy=policy, stats=asked)))


def test_many_channels():
    """More than a kernel takes at once, in a policy and on record."""
    g = torch.Generator().manual_seed(3)
    groups = torch.randint(0, 21, (1, 40), generator=g, dtype=torch.uint8)
    channels = Channels(groups, 21)
    policy = Scale(tuple(torch.rand(21, generator=g).tolist()), renormalise=True)
    asked = StatsRequest(RowSelection(torch.tensor([3, 40])), channels, entropy=True)
    case = make_case(queries=41, batch=1)
    check(replace(case, edit=AttentionEdit(channels=channels, policy=policy, stats=asked)))


def test_one_channel_empty_and_all_mass_in_another():
    groups = torch.full((1, 20), 3, dtype=torch.uint8)
    case = make_case(queries=20, batch=1, stats=True)
    for policy in POLICIES[:4]:
        check(replace(case, edit=case.edit.replace(channels=Channels(groups, 4), policy=policy)))


def test_extreme_logits_and_removed_keys():
    case = make_case(queries=20, batch=1, stats=True)
    far = replace(case, q=case.q * 1e4 / 16)
    check(replace(far, edit=far.edit.replace(value_gain=torch.rand(1, 1, 15))))
    bias = torch.full((1, 1, 20), -torch.inf)  # every key, so that rows are as empty as masked ones
    for columns in (bias, bias.clone().index_fill_(2, torch.tensor([4]), 0.0)):
        check(replace(case, edit=case.edit.replace(bias=columns)))


def test_full_rows_and_blocks_of_edited_rows(monkeypatch):
    g = torch.Generator().manual_seed(2)
    case = make_case(("move_mass", "value_gain"), mask="bool")
    for edited in (False, True):
        asked = request(2, 23, 23, g, columns=None, full_rows=True, edited=edited)
        monkeypatch.setattr(call, "BLOCK_ELEMENTS", 500)
        check(replace(case, edit=case.edit.replace(stats=asked)))


@pytest.mark.parametrize("parts", [("bias",), ("move_mass",), ("open",), ()])
def test_an_empty_selection(parts):
    none = RowSelection(torch.empty(0, dtype=torch.int64))
    case = make_case(parts, rows=none, queries=12)
    asked = StatsRequest(none, lse=True, top1=True, entropy=True, full_rows=True, edited=True)
    case = replace(case, edit=case.edit.replace(stats=asked))
    check(case)
    assert run(case)[1].slices.shape == (2, 2, 0, 12)


def test_observing_equals_recording_beside_an_output():
    case = make_case(queries=29, mask="bool")
    asked = request(2, 29, 29, torch.Generator().manual_seed(1))
    case = replace(case, edit=AttentionEdit(stats=asked))
    here = moved(case)
    seen = prefill_stats(here.q, here.k, here.edit.stats, scaling=0.25, **here.options)
    beside = run(case)[1]
    for name, tensor in stats_dict(seen).items():
        assert torch.equal(tensor.cpu(), getattr(beside, name)), name


def test_top1_is_the_first_of_equals(small_tiles):
    q, k = torch.zeros(1, 1, 9, 16, device=DEVICE), torch.zeros(1, 1, 40, 16, device=DEVICE)
    k[..., 0] = (
        torch.arange(40, device=DEVICE).remainder(10).clamp_max(7).float()
    )  # 7, 8, 9 of every ten are equal
    q[..., 0] = 1.0
    mask = torch.ones(1, 1, 9, 40, dtype=torch.bool, device=DEVICE)
    mask[..., 4, :33] = False  # visited as a part, after blocks that are seen in whole
    mask[..., 5, :] = False
    asked = StatsRequest(top1=True, entropy=True, lse=True)
    stats = prefill_stats(q, k, asked, mask=mask, scaling=1.0, is_causal=False)
    assert stats.top_column[0, 0].tolist() == [7, 7, 7, 7, 37, 0, 7, 7, 7]
    assert stats.top_weight[0, 0, 5] == stats.entropy[0, 0, 5] == 0
    assert stats.lse[0, 0, 5] == -torch.inf


@pytest.mark.parametrize("mask", ["causal", "bool", "soft"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_what_keys_receive_per_query_head(backend, mask, small_tiles, monkeypatch):
    monkeypatch.setattr(torch_backend, "BLOCK_ELEMENTS", 500)
    g = torch.Generator().manual_seed(8)
    for chosen in (
        None,
        RowSelection.where(torch.rand(2, 23, generator=g) > 0.6),
        RowSelection(torch.arange(0)),
    ):
        case = make_case(mask=mask, keys=35, softcap=5.0, sinks=torch.tensor([0.5, 2.0]))
        case = replace(case, edit=AttentionEdit(stats=StatsRequest(chosen, full_rows=True)))
        here, low, high = moved(case), case, case.doubled()
        columns = {"columns": "sum", "per_query_head": True}
        options = columns | {"rows": here.edit.stats.rows, "backend": backend} | here.options
        got = attention_stats(here.q, here.k, **options).received.cpu()
        columns |= {"rows": chosen, "backend": "reference"}
        single, exact = (attention_stats(c.q, c.k, **columns, **c.options).received for c in (low, high))
        assert torch.equal(exact, high.call(attend, backend="reference")[1].slices.sum(2))
        size = exact.max().clamp_min(1).item()
        allowed = 2 * (single - exact).abs().max() + 8 * torch.finfo(torch.float32).eps * size
        assert (got - exact).abs().max() <= allowed


# --- what each row costs


def test_plain_rows_are_computed_once_and_edited_rows_beside_them(monkeypatch):
    """Rows that the edit leaves alone appear in one launch, edited rows in their own and in the sums."""
    written, summed = [], []
    attend_rows, row_stats_ = prefill.attend_rows, call.row_stats

    def rows_of(tensors):
        numbers = row_list.RowList(*tensors).row_index
        return list(range(37)) if numbers is None else numbers.tolist()

    def write(out, tensors, *args, **kw):
        written.append(rows_of(tensors))
        return attend_rows(out, tensors, *args, **kw)

    def add(rows, *args, **kw):
        summed.append(rows_of(rows.tensors))
        return row_stats_(rows, *args, **kw)

    monkeypatch.setattr(prefill, "attend_rows", write)
    monkeypatch.setattr(call, "row_stats", add)
    rows = RowSelection(torch.tensor([3, 20, 21, 36]))
    check(make_case(("move_mass",), queries=37, rows=rows, mask="bool"))
    others = [row for row in range(37) if row not in rows.index.tolist()]
    assert written == [others, [3, 20, 21, 36]]
    assert summed == [[3, 20, 21, 36]]

    written.clear(), summed.clear()
    # There are few of them, and no mask: torch computes the rest.
    check(make_case(("move_mass",), queries=37, rows=rows, mask="causal"))
    assert written == summed == [[3, 20, 21, 36]]

    written.clear(), summed.clear()
    check(make_case(("bias",), queries=37, mask="causal"))
    assert written == [list(range(37))]
    assert summed == []


@torch.no_grad()
def test_memory_is_linear_in_the_lengths():
    """Nothing that a call allocates beside its output is larger than a few of its vectors."""
    length, rows = 512, RowSelection(torch.arange(490, 506))
    g = torch.Generator().manual_seed(0)
    q, k, v = (random_like(g, 1, 1, length, 16) for _ in range(3))
    channels = Channels(torch.randint(0, 4, (1, length), generator=g, dtype=torch.uint8), 4)
    asked = StatsRequest(rows, channels, entropy=True, top1=True, columns=torch.arange(7)[None])
    edit = AttentionEdit(rows, channels=channels, policy=POLICIES[0], stats=asked)
    case = moved(Case(q, k, v, edit, torch.ones(1, 1, length, length, dtype=torch.bool).tril(), False))
    with torch.profiler.profile(profile_memory=True) as profile:
        attend_prefill(case.q, case.k, case.v, case.edit, scaling=0.25, **case.options)
    sizes = [max(event.cpu_memory_usage, event.device_memory_usage) for event in profile.events()]
    assert max(sizes) == q.nbytes, "the output"
    assert max(size for size in sizes if size != q.nbytes) <= 16 * length


# --- block maps


@pytest.mark.parametrize(
    ("kind", "opened"),  # a causal mask alone needs no map
    [*itertools.product(("bool", "soft", "per_head"), (False, True)), ("causal", True)],
)
def test_block_map_lists_what_the_mask_shows(kind, opened, small_tiles):
    case = make_case(("open",) if opened else (), queries=50, keys=61, mask=kind)
    index = torch.arange(50)[torch.rand(50, generator=torch.Generator().manual_seed(4)) > 0.4]
    row_list_ = call_of(case).row_list(index.to(DEVICE), edited=False)
    visible, added = visibility(case.mask, 50, 61, case.is_causal, case.edit.unmask, case.q.device)
    free = visible if added is None else visible & (added == 0)
    batch, heads = row_list_.order.shape[:2]
    visible, free = (x.expand(batch, heads, 50, 61)[:, :, index] for x in (visible, free))
    for b, h, block in torch.cartesian_prod(*map(torch.arange, row_list_.counts.shape[:3])).tolist():
        rows = slice(16 * block, 16 * block + 16)
        seen = [j for j in range(4) if visible[b, h, rows, 16 * j : 16 * j + 16].any()]
        whole = [j for j in seen if j < 3 and free[b, h, rows, 16 * j : 16 * j + 16].all()]
        assert row_list_.counts[b, h, block].tolist() == [len(whole), len(seen)]
        partly = [j for j in seen if j not in whole]
        assert row_list_.order[b, h, block, : len(seen)].tolist() == whole + partly


def test_hidden_blocks_are_not_read(small_tiles):
    """NaN in keys and values that no row may see harms nothing: their blocks are never loaded."""
    case = make_case(("bias",), queries=40, keys=64, batch=1, mask="none")
    mask = torch.zeros(1, 1, 40, 64, dtype=torch.bool)
    mask[..., 16:32] = True
    case.k[:, :, :16], case.v[:, :, 32:] = torch.nan, torch.nan
    out, _ = run(replace(case, mask=mask))
    inside = replace(case, k=case.k[:, :, 16:32], v=case.v[:, :, 16:32], mask=None)
    edit = AttentionEdit(bias=case.edit.bias[..., 16:32])
    want, _ = attend_reference(inside.q, inside.k, inside.v, edit, mask=None, scaling=0.25, is_causal=False)
    torch.testing.assert_close(out, want)


def test_layers_that_share_a_mask_share_its_map(monkeypatch):
    made = []
    block_map = block_mask._block_map
    monkeypatch.setattr(block_mask, "_block_map", lambda *a: made.append(1) or block_map(*a))
    case = make_case(("bias",), queries=20, batch=1, mask="bool")
    for _ in range(3):
        run(case)
    assert len(made) == 1
    check(replace(case, mask=case.mask.clone()))
    assert len(made) == 2
    case.mask[..., 5:, 0] = ~case.mask[..., 5:, 0]  # in place: the same tensor, another mask
    check(case)
    assert len(made) == 3


def test_in_inference_mode_a_map_serves_the_layers_of_one_forward(monkeypatch):
    """Changes of inference tensors go unseen: when the same keys come again, it is another forward."""
    made = []
    block_map = block_mask._block_map
    monkeypatch.setattr(block_mask, "_block_map", lambda *a: made.append(1) or block_map(*a))
    case = make_case(("move_mass",), queries=20, batch=1, mask="bool", stats=True)
    with torch.inference_mode():
        mask = case.mask.clone()
        layers = [replace(case, mask=mask, k=case.k.clone()) for _ in range(3)]

        def forward() -> int:
            made.clear()
            for layer in layers:
                got = attend(layer.q, layer.k, layer.v, layer.edit, mask=mask, backend="triton")
                want = attend(layer.q, layer.k, layer.v, layer.edit, mask=mask, backend="reference")
                torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(got[1].masses, want[1].masses, rtol=1e-4, atol=1e-5)
            return len(made)

        once = forward()
        assert once == forward() == 2, "a map of the edited rows, which are all, and one of those on record"
        mask[..., 5:, 0] = ~mask[..., 5:, 0]
        assert forward() == once
        layers = [replace(layer, k=layer.k) for layer in layers]
        mask = mask.clone()
        assert forward() == once, "another mask, perhaps at the address of the last"


# --- the same answer for the same question


def test_a_sample_has_the_same_bits_alone_and_in_a_batch():
    case = make_case(("move_mass", "value_gain"), batch=3, mask="bool", stats=True)
    out, _ = run(case)
    again, _ = run(case)
    assert torch.equal(out, again)
    sample = slice(1, 2)

    def pick(x):
        return x if x is None or x.shape[0] == 1 else x[sample]

    channels = Channels(case.edit.channels.groups[sample], 4)
    edit = AttentionEdit(channels=channels, policy=case.edit.policy, value_gain=pick(case.edit.value_gain))
    alone = replace(
        case, q=case.q[sample], k=case.k[sample], v=case.v[sample], edit=edit, mask=pick(case.mask)
    )
    assert torch.equal(run(alone)[0], out[sample])


def test_strided_inputs():
    """Heads and tokens in any memory order, a mask that is expanded, tensors without unit stride."""
    case = make_case(("scale", "bias"), queries=21, mask="bool", ratio=2)
    want, _ = run(case)
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.q, case.k, case.v))
    mask = case.mask.transpose(2, 3).contiguous().transpose(2, 3)
    v = v.transpose(2, 3).contiguous().transpose(2, 3)
    edit = case.edit.replace(bias=case.edit.bias.transpose(0, 2).contiguous().transpose(0, 2))
    assert torch.equal(run(replace(case, q=q, k=k, v=v, mask=mask, edit=edit))[0], want)


# --- torch.compile


def test_operators_are_what_their_fakes_say(monkeypatch):
    """torch.library's own checks: schemas, what is mutated, and the shapes that compilation counts on."""
    called = {}

    def spy(module, name):
        operator = getattr(module, name)

        def call(*args, **kw):
            called.setdefault(operator, (args, kw))
            return operator(*args, **kw)

        monkeypatch.setattr(module, name, call)

    spy(block_mask, "_block_map"), spy(call, "own_keys"), spy(row_stats, "_row_stats")
    spy(weight_slices, "_row_slices"), spy(prefill, "attend_rows")
    case = make_case(("move_mass",), queries=18, mask="bool", stats=True)
    run(replace(case, edit=case.edit.replace(windows=Windows(torch.tensor([[3, 30]])))))
    assert len(called) == 5
    for operator, (args, kw) in called.items():
        torch.library.opcheck(operator.op, args, kw, test_utils=("test_schema", "test_faketensor"))


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("dim", "ratio"), [(64, 1), (80, 3), (96, 8), (128, 7), (256, 2)])
@pytest.mark.parametrize("mask", ["causal", "bool", "soft"])
def test_longer_prompts(dtype, dim, ratio, mask):
    rows = RowSelection(torch.arange(900, 1060))
    shape = {"queries": 1061, "ratio": ratio, "dim": dim, "dtype": dtype, "mask": mask, "rows": rows}
    check(make_case(("move_mass", "bias", "value_gain"), stats=True, **shape))
    check(make_case(("slope", "open", "head_gain"), stats=True, **(shape | {"rows": None})))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@torch.no_grad()
def test_a_cuda_graph_replays_with_another_mask():
    case = moved(make_case(("move_mass",), queries=128, mask="bool", stats=True))
    call = {"scaling": 0.25, "is_causal": False}

    def layer():
        return attend_prefill(case.q, case.k, case.v, case.edit, mask=case.mask, **call)

    layer()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, stats = layer()
    case.mask[:, :, 64:, 3:40] = False
    graph.replay()
    want, want_stats = layer()
    assert torch.equal(out, want)
    assert torch.equal(stats.masses, want_stats.masses)


@pytest.mark.slow
@torch.no_grad()
def test_compiles_without_a_graph_break():
    case = moved(make_case(("move_mass", "bias"), queries=18, mask="bool", stats=True))

    def layer(q, k, v, mask):
        return attend_prefill(q * 2, k, v, case.edit, mask=mask, scaling=0.1, is_causal=False)

    want, want_stats = layer(case.q, case.k, case.v, case.mask)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        out, stats = compiled(case.q, case.k, case.v, case.mask)
        assert torch.equal(out, want)
        for name, tensor in stats_dict(stats).items():
            assert torch.equal(tensor, getattr(want_stats, name)), name
