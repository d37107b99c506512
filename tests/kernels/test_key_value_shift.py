"""Vectors added to keys and values: what they do, which rows see them, and how they compose."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import random_like

from regaze.errors import BadParameterError, CompositionError, ShapeError
from regaze.kernels import (
    AttentionEdit,
    Channels,
    HeadSource,
    KeyValueShift,
    RowSelection,
    Scale,
    StatsRequest,
    attend,
    compose,
)
from regaze.kernels.key_value_shift import shifted
from regaze.kernels.sliding_cache import shift_edit

B, H, HKV, L, D, DV = 2, 6, 2, 9, 8, 5
BACKENDS = ("reference", "torch", pytest.param("triton", marks=pytest.mark.slow))
GROUPS = torch.tensor([[0, 1, 1, 0, 2, 0], [1, 0, 2, 2, 0, 0]])


def tensors(queries=L, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [random_like(g, B, h, n, d) for h, n, d in ((H, queries, D), (HKV, L, D), (HKV, L, DV))]


def vectors(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shift(rows=None, how="add", **changes):
    parts = {"keys": vectors(2, HKV, D), "values": vectors(2, HKV, DV, seed=8), **changes}
    return KeyValueShift(GROUPS, how=how, rows=rows, **parts)


def by_hand(x, added, how="add"):
    """One token at a time."""
    x = x.clone()
    for b in range(B):
        for j, group in enumerate(GROUPS[b].tolist()):
            for h in range(HKV) if group else ():
                old, d = x[b, h, j], added[group - 1, h]
                if how == "add":
                    x[b, h, j] = old + d
                else:
                    against = 1 + max(0.0, float(-(old @ d) / (old.norm() * d.norm())))
                    new = old / old.norm() + against * d
                    x[b, h, j] = new / new.norm() * old.norm()
    return x


@pytest.mark.parametrize("how", ["add", "turn"])
def test_what_is_added(how):
    _, k, v = tensors()
    each = shift(how=how)
    new_k, new_v = shifted((each,), k, v)
    torch.testing.assert_close(new_k, by_hand(k, each.keys, how), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(new_v, by_hand(v, each.values, how), rtol=1e-5, atol=1e-6)
    left_alone = F.pad(GROUPS, (0, L - GROUPS.shape[1])) == 0
    assert torch.equal(new_k.transpose(1, 2)[left_alone], k.transpose(1, 2)[left_alone])
    if how == "turn":
        torch.testing.assert_close(new_k.norm(dim=-1), k.norm(dim=-1))
    only_values = shifted((shift(keys=None),), k, v)
    assert only_values[0] is k


def test_hand_example_of_a_turn():
    """(3, 4) by (0, -0.5): the cosine is -0.8, so (.6, .8) + 1.8 (0, -.5) = (.6, -.1), back to length 5."""
    each = KeyValueShift(torch.ones(1, 1, dtype=torch.int64), torch.tensor([[[0.0, -0.5]]]), how="turn")
    got, _ = shifted((each,), torch.tensor([[[[3.0, 4.0]]]]), torch.zeros(1, 1, 1, 1))
    torch.testing.assert_close(got.flatten(), torch.tensor([4.931970, -0.821995]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries", [1, L])
@pytest.mark.parametrize("masked", [False, True])
def test_every_row_sees_them(backend, queries, masked):
    q, k, v = tensors(queries)
    edit = AttentionEdit(shifts=(shift(),), bias=vectors(B, 1, 4))
    options = {"is_causal": True, "backend": backend}
    if masked:
        options = {"mask": torch.ones(1, 1, queries, L).tril(L - queries).bool(), "backend": backend}
    changed = by_hand(k, edit.shifts[0].keys), by_hand(v, edit.shifts[0].values)
    want = attend(q, *changed, AttentionEdit(bias=edit.bias), **options)[0]
    torch.testing.assert_close(attend(q, k, v, edit, **options)[0], want, rtol=1e-4, atol=1e-5)


ROWS = {
    "same": RowSelection(torch.tensor([2, 5, 8])),
    "differ": RowSelection(torch.tensor([0, 4, 8]), torch.tensor([[True, False, True], [False, True, True]])),
    "none": RowSelection(torch.tensor([], dtype=torch.int64)),
}


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("more", [False, True])
def test_some_rows_see_them(backend, rows, more):
    """With and without anything else in the edit, under a mask and without one."""
    q, k, v = tensors()
    rest = (
        AttentionEdit(head_gain=torch.linspace(0, 2, H)[None], value_gain=vectors(1, 1, 3)) if more else None
    )
    edit = (rest or AttentionEdit()).replace(shifts=(shift(rows),))
    seeing = torch.zeros(B, L, dtype=torch.bool)
    seeing[:, rows.index] = True if rows.active is None else rows.active
    mask = torch.ones(1, 1, L, L).tril().bool()
    mask[..., 2] = False
    changed = by_hand(k, edit.shifts[0].keys), by_hand(v, edit.shifts[0].values)
    for options in ({"is_causal": True}, {"mask": mask}, {"mask": mask.expand(B, H, L, L)}, {}):
        options["backend"] = backend
        after, before = (attend(q, *pair, rest, **options)[0] for pair in (changed, (k, v)))
        want = torch.where(seeing[:, None, :, None], after, before)
        torch.testing.assert_close(attend(q, k, v, edit, **options)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [None, ROWS["differ"]])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_statistics_are_of_the_keys_as_they_came_or_of_the_edited_rows(backend, rows):
    q, k, v = tensors()
    each, options = shift(rows), {"is_causal": True, "backend": backend}
    request = StatsRequest(RowSelection(torch.tensor([3, 4, 8])), entropy=True, lse=True, full_rows=True)
    edit = AttentionEdit(shifts=(each,), stats=request)
    plain = attend(q, k, v, AttentionEdit(stats=request), **options)[1]
    out, stats = attend(q, k, v, edit, **options)
    for got, want in zip(stats, plain, strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(out, attend(q, k, v, edit.without_stats, **options)[0])
    edited = attend(
        q,
        k,
        v,
        edit.replace(stats=StatsRequest(request.rows, lse=True, full_rows=True, edited=True)),
        **options,
    )[1]
    whole = attend(q, by_hand(k, each.keys), v, AttentionEdit(stats=request), **options)[1]
    seen = torch.tensor([[False, False, True], [False, True, True]]) if rows else torch.ones(B, 3).bool()
    seen = seen[:, None]
    torch.testing.assert_close(edited.lse, torch.where(seen, whole.lse, plain.lse))
    torch.testing.assert_close(edited.slices, torch.where(seen[..., None], whole.slices, plain.slices))


def test_shifts_add_up_in_any_order():
    """Each is what its own rule gives for the keys as they came, turns too."""
    q, k, v = tensors()
    one, other = shift(keys=None), shift(how="turn", keys=vectors(2, HKV, D, seed=3))
    edits = [AttentionEdit(shifts=(each,)) for each in (one, other)]
    both, swapped = compose(edits), compose(edits[::-1])
    got = attend(q, k, v, both, is_causal=True)[0]
    torch.testing.assert_close(got, attend(q, k, v, swapped, is_causal=True)[0])
    value = by_hand(v, one.values) + by_hand(v, other.values, "turn") - v
    key = by_hand(k, other.keys, "turn")
    torch.testing.assert_close(got, attend(q, key, value, is_causal=True)[0], rtol=1e-4, atol=1e-5)
    for rows in (ROWS["same"], None):
        with pytest.raises(CompositionError, match="different query rows"):
            compose([AttentionEdit(shifts=(shift(r),)) for r in (ROWS["differ"], rows)])
    again = RowSelection(ROWS["same"].index.clone())
    assert len(compose([AttentionEdit(shifts=(shift(r),)) for r in (ROWS["same"], again)]).shifts) == 2


def test_beside_a_policy_and_borrowed_maps():
    """Masses and sources are those of the shifted keys."""
    q, k, v = tensors()
    groups = torch.zeros(1, 4, dtype=torch.uint8)
    groups[0, 2:] = 1
    rest = AttentionEdit(
        channels=Channels(groups=groups, num_groups=2),
        policy=Scale((1.0, 0.5)),
        head_source=HeadSource(torch.tensor([[1, 1, 0, 5, 4, 3]])),
    )
    each = shift()
    got = attend(q, k, v, rest.replace(shifts=(each,)), is_causal=True)[0]
    want = attend(q, by_hand(k, each.keys), by_hand(v, each.values), rest, is_causal=True)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_keys_that_a_window_dropped_and_keys_that_are_cached():
    edit = AttentionEdit(shifts=(shift(),))
    assert torch.equal(shift_edit(edit, 2).shifts[0].groups, GROUPS[:, 2:])
    each = shift()
    assert each.entering(0) is each
    assert each.entering(3).groups.tolist() == [[0, 0, 0, 0, 2, 0], [0, 0, 0, 2, 0, 0]]
    assert each.entering(6) is None
    assert each.entering(60) is None


def test_nothing_to_add_is_neutral_and_an_edit_with_a_shift_is_not():
    q, k, v = tensors()
    assert not AttentionEdit(shifts=(shift(),)).neutral
    assert not AttentionEdit(shifts=(shift(),)).uses_own_weights
    nothing = KeyValueShift(torch.zeros_like(GROUPS), vectors(2, HKV, D), vectors(2, HKV, DV))
    got = attend(q, k, v, AttentionEdit(shifts=(nothing,)), is_causal=True)[0]
    assert torch.equal(got, attend(q, k, v, is_causal=True)[0])


def test_low_precision_is_rounded_once():
    q, k, v = (x.bfloat16() for x in tensors())
    each = shift()
    new_k, _ = shifted((each,), k, v)
    assert new_k.dtype == torch.bfloat16
    assert torch.equal(new_k, by_hand(k.float(), each.keys).bfloat16())
    assert attend(q, k, v, AttentionEdit(shifts=(each,)), is_causal=True)[0].dtype == torch.bfloat16


def test_gradients_reach_the_vectors():
    q, k, v = tensors()
    each = shift(ROWS["same"])
    each.keys.requires_grad_()
    each.values.requires_grad_()
    attend(q, k, v, AttentionEdit(shifts=(each,)), is_causal=True)[0].sum().backward()
    assert each.keys.grad.any()
    assert each.values.grad.any()


def test_what_does_not_fit():
    q, k, v = tensors()
    with pytest.raises(ShapeError, match=r"KeyValueShift.groups must be \[B or 1, n\] int64"):
        KeyValueShift(GROUPS.float())
    with pytest.raises(ShapeError, match=r"KeyValueShift.values must be \[G, Hkv, D\]"):
        KeyValueShift(GROUPS, values=torch.zeros(2, D))
    with pytest.raises(BadParameterError, match='how must be "add" or "turn"'):
        KeyValueShift(GROUPS, how="scale")
    with pytest.raises(ShapeError, match=r"KeyValueShift.keys is \[2, 3, 8\]"):
        attend(q, k, v, AttentionEdit(shifts=(shift(keys=torch.zeros(2, 3, D)),)))
    with pytest.raises(ShapeError, match="Lk=3"):
        attend(q[:, :, :3], k[:, :, :3], v[:, :, :3], AttentionEdit(shifts=(shift(),)))
    with pytest.raises(ShapeError, match=r"shifts.rows.index"):
        attend(q[:, :, :2], k, v, AttentionEdit(shifts=(shift(ROWS["same"]),)))
