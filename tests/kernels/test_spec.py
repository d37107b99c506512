"""What an edit may look like, what is refused and in which words, and how several become one."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from regaze.errors import BadParameterError, CompositionError, RegazeError, ShapeError
from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import (
    BACKENDS,
    AttentionEdit,
    Channels,
    RowSelection,
    Scale,
    StatsRequest,
    UnmaskRect,
    attend,
    compose,
)

B, HQ, HKV, LQ, LK, D = 2, 6, 2, 3, 5, 4


def tensors(keys: int = LK):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(B, h, n, D, generator=g) for h, n in ((HQ, LQ), (HKV, keys), (HKV, keys))]


def groups(batch: int = B, n: int = LK, count: int = 3) -> Channels:
    return Channels(torch.arange(n).remainder(count).to(torch.uint8).expand(batch, n), count)


def move_mass(**changes) -> MoveMass:
    default = MoveMass(3, donors=(0,), receivers=(1,), gate=(1, 2), moved=0.5, min_share=0.0, min_mass=0.0)
    return replace(default, **changes)


SHAPES = f"query is [B={B}, Hq={HQ}, Lq={LQ}, D] and key has Lk={LK} keys"
TRUE = torch.ones(1, LQ, dtype=torch.bool)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (AttentionEdit(bias=torch.zeros(B, 1, LK + 1)), "bias is [2, 1, 6]"),
        (AttentionEdit(bias=torch.zeros(3, 1, LK)), "bias is [3, 1, 5]"),
        (AttentionEdit(score_slope=torch.zeros(1, HKV, LK)), "score_slope is [1, 2, 5]"),
        (AttentionEdit(score_gain=torch.zeros(1, 5, LK)), "score_gain is [1, 5, 5]"),
        (AttentionEdit(value_gain=torch.zeros(1, 1, 9)), "value_gain is [1, 1, 9]"),
        (AttentionEdit(spread=torch.ones(3, LK).bool()), "spread is [3, 5]"),
        (AttentionEdit(spread=torch.ones(1, LK + 1).bool()), "spread is [1, 6]"),
        (AttentionEdit(sink=torch.zeros(1, 1, LQ + 1)), "sink is [1, 1, 4]"),
        (AttentionEdit(sink=torch.zeros(B, HKV, LQ)), "sink is [2, 2, 3]"),
        (AttentionEdit(head_gain=torch.ones(1, HKV)), "head_gain is [1, 2]"),
        (AttentionEdit(head_gain=torch.ones(1, HQ, LQ + 1)), "head_gain is [1, 6, 4]"),
        (AttentionEdit(head_score_gain=torch.ones(3, HQ)), "head_score_gain is [3, 6]"),
        (
            AttentionEdit(unmask=(UnmaskRect(TRUE, torch.ones(1, 6).bool()),)),
            "UnmaskRect.columns is [1, 6]",
        ),
        (
            AttentionEdit(unmask=(UnmaskRect(TRUE, torch.ones(3, 5).bool()),)),
            "UnmaskRect.columns is [3, 5]",
        ),
        (
            AttentionEdit(unmask=(UnmaskRect(torch.ones(1, 4).bool(), TRUE),)),
            "UnmaskRect.rows is [1, 4]",
        ),
        (AttentionEdit(rows=RowSelection(torch.arange(4)), bias=torch.zeros(1, 1, 1)), "rows.index is [4]"),
        (AttentionEdit(rows=RowSelection(torch.arange(2), torch.ones(3, 2).bool())), "rows.active is [3, 2]"),
        (AttentionEdit(stats=StatsRequest(rows=RowSelection(torch.arange(4)))), "stats.rows.index is [4]"),
        (AttentionEdit(stats=StatsRequest(channels=groups(3))), "stats.channels (as [B, n, K]) is [3, 5, 3]"),
        (AttentionEdit(stats=StatsRequest(columns=torch.zeros(3, 2).long())), "stats.columns is [3, 2]"),
        (AttentionEdit(channels=groups(n=6), policy=move_mass()), "channels (as [B, n, K]) is [2, 6, 3]"),
    ],
)
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_an_edit_that_does_not_fit_names_both_shapes(edit, said, backend):
    with pytest.raises(ShapeError, match=re.escape(said)) as error:
        attend(*tensors(), edit, backend=backend)
    assert SHAPES in str(error.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AttentionEdit(bias=torch.zeros(5)), "bias must be [B or 1, Hq or 1, n], got [5] float32"),
        (lambda: AttentionEdit(head_gain=torch.zeros(5)), "head_gain must be [B or 1, Hq] or"),
        (
            lambda: AttentionEdit(sink=torch.zeros(1, 5)),
            "sink must be [B or 1, Hq or 1, Lq] float, got [1, 5]",
        ),
        (lambda: AttentionEdit(sink=torch.zeros(1, 1, 5).long()), "Lq] float, got [1, 1, 5] int64"),
        (
            lambda: AttentionEdit(head_score_gain=torch.zeros(1, 2, 3)),
            "head_score_gain must be [B or 1, Hq], got [1, 2, 3]",
        ),
        (lambda: RowSelection(torch.zeros(2)), "RowSelection.index must be [R] int64, got [2] float32"),
        (
            lambda: RowSelection(torch.arange(2), torch.ones(1, 3).bool()),
            "must be [B, R=2] bool, got [1, 3] bool",
        ),
        (
            lambda: RowSelection(torch.arange(2), torch.ones(1, 2)),
            "must be [B, R=2] bool, got [1, 2] float32",
        ),
        (lambda: RowSelection.where(torch.ones(3)), "takes a [B, Lq] bool mask, got [3] float32"),
        (lambda: Channels(torch.zeros(1, 2), 2), "groups must be [B, n] uint8, got [1, 2] float32"),
        (lambda: Channels(weights=torch.zeros(1, 2)), "must be [C, B, n], got [1, 2]"),
        (
            lambda: Channels(torch.zeros(1, 2).byte(), 1, torch.zeros(1, 1, 3)),
            "[B, n] = [1, 2] but weights [1, 3]",
        ),
        (lambda: StatsRequest(columns=torch.zeros(2, 2)), "must be [B or 1, n] int64, got [2, 2] float32"),
        (
            lambda: UnmaskRect(torch.ones(1, 2), TRUE),
            "UnmaskRect.rows must be [B or 1, Lq or n] bool, got [1, 2] float32",
        ),
        (lambda: UnmaskRect(TRUE, TRUE[0]), "UnmaskRect.columns must be [B or 1, Lq or n] bool, got [3]"),
    ],
)
def test_a_part_of_the_wrong_shape_or_type_is_refused_when_made(make, said):
    with pytest.raises(ShapeError, match=re.escape(said)):
        make()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Channels(), "needs groups, weights or both"),
        (lambda: Channels(torch.zeros(1, 2).byte(), 0), "num_groups must be in 1..255, got 0"),
        (lambda: Channels(torch.tensor([[0, 3]], dtype=torch.uint8), 3), "name group 3, but num_groups is 3"),
        (lambda: StatsRequest(columns=torch.zeros(1, 1).long(), full_rows=True), "`columns` or `full_rows`"),
        (lambda: AttentionEdit(policy=move_mass()), "together"),
        (lambda: AttentionEdit(channels=groups()), "together"),
        (
            lambda: AttentionEdit(channels=groups(), policy=Scale((1.0, 2.0))),
            "Scale works on 2 channels, but 3",
        ),
        (
            lambda: AttentionEdit(channels=Channels(weights=torch.ones(1, 1, 2)), policy=Scale((1.0,))),
            "with groups",
        ),
        (lambda: move_mass(moved=1.5), "in [0, 1]; got 1.5"),
        (lambda: move_mass(moved=float("nan")), "in [0, 1]; got nan"),
        (lambda: move_mass(donors=(1,)), "channels [1] are donors and receivers"),
        (lambda: move_mass(gate=(3,)), "gate must be distinct channels in 0..2, got (3,)"),
        (lambda: move_mass(donors=(0, 0)), "donors must be distinct channels in 0..2"),
    ],
)
def test_a_parameter_without_meaning_is_refused(make, said):
    with pytest.raises(BadParameterError, match=re.escape(said)):
        make()


def test_tensors_of_attend_that_do_not_fit_name_their_shapes():
    q, k, v = tensors()
    for call, said in (
        (lambda: attend(q[0], k, v), "query is [6, 3, 4]"),
        (lambda: attend(q[:1], k, v), "query is [1, 6, 3, 4] float32, key is [2, 2, 5, 4]"),
        (lambda: attend(q, k, v[:, :, 1:]), "value is [2, 2, 4, 4]"),
        (lambda: attend(q[:, :5], k, v), "Hq=5 is not a multiple of Hkv=2"),
        (lambda: attend(q, k, v, mask=torch.ones(3, 5).bool()), "mask is [3, 5]"),
        (
            lambda: attend(q, k, v, mask=torch.ones(1, 1, 1, 5).bool()),
            "[B, Hq, Lq, Lk] = [2, 6, 3, 5]; mask is [1, 1, 1, 5]",
        ),
        (lambda: attend(q, k, v, mask=torch.ones(1, 2, 3, 5).bool()), "mask is [1, 2, 3, 5]"),
        (
            lambda: attend(q, k, v, mask=torch.ones(1, 1, 3, 5).long()),
            "must be bool (True: may look) or additive float",
        ),
    ):
        with pytest.raises(ShapeError, match=re.escape(said)):
            call()


def test_backends_by_name_and_environment(monkeypatch):
    q, k, v = tensors()
    with pytest.raises(
        BadParameterError, match="unknown attention backend 'cudnn'; this build has reference, torch"
    ):
        attend(q, k, v, backend="cudnn")
    monkeypatch.setenv("REGAZE_BACKEND", "nonsense")
    with pytest.raises(RegazeError, match="nonsense"):
        attend(q, k, v)
    attend(q, k, v, backend="torch")
    monkeypatch.setenv("REGAZE_BACKEND", "reference")
    assert torch.equal(attend(q, k, v)[0], attend(q, k, v, backend="reference")[0])


def test_an_edit_that_fitted_is_checked_again_for_fewer_keys_or_another_batch():
    edit = AttentionEdit(bias=torch.zeros(B, 1, LK))
    edit.check(B, HQ, LQ, LK)
    edit.check(B, HQ, LQ, LK + 7)
    for shape in ((B, HQ, LQ, LK - 1), (B + 1, HQ, LQ, LK)):
        with pytest.raises(ShapeError):
            edit.check(*shape)


def test_neutral_and_replace():
    assert AttentionEdit().neutral
    assert AttentionEdit(stats=StatsRequest(lse=True), rows=RowSelection(torch.arange(1))).neutral
    for part in (
        {"bias": torch.zeros(1, 1, 1)},
        {"head_gain": torch.ones(1, HQ)},
        {"sink": torch.zeros(1, 1, 1)},
        {"unmask": (UnmaskRect(TRUE, TRUE),)},
    ):
        assert not AttentionEdit(**part).neutral
    edit = AttentionEdit(bias=torch.zeros(1, 1, 2))
    longer = edit.replace(bias=torch.ones(1, 1, 3))
    assert edit.columns("bias", 4).flatten().tolist() == [0, 0, 0, 0]
    assert longer.columns("bias", 4).flatten().tolist() == [1, 1, 1, 0]


def test_rows_where():
    mask = torch.tensor([[False, True, True], [False, True, False]])
    rows = RowSelection.where(mask)
    assert rows.index.tolist() == [1, 2]
    assert rows.active.tolist() == [[True, True], [True, False]]
    assert RowSelection.where(mask[:1]).active is None
    assert RowSelection.where(torch.zeros(1, 3, dtype=torch.bool)).index.tolist() == []


# --- composition


def test_composing_none_or_one():
    edit = AttentionEdit(bias=torch.zeros(1, 1, 1))
    assert compose([]) is None
    assert compose([edit]) is edit


def test_composed_parts_join_over_the_union_of_columns():
    a = AttentionEdit(
        bias=torch.tensor([[[1.0, 2.0]]]),
        score_gain=torch.tensor([[[2.0]]]),
        value_gain=torch.tensor([[[3.0, 1.0]]]),
        head_gain=torch.full((1, 2), 2.0),
        head_score_gain=torch.tensor([[0.5, 1.0]]),
    )
    b = AttentionEdit(
        bias=torch.tensor([[[10.0], [20.0]]]),
        score_gain=torch.tensor([[[3.0, 5.0]]]),
        value_gain=torch.tensor([[[0.5]]]),
        head_gain=torch.tensor([[[1.0, 0.0], [2.0, 3.0]]]),
        head_score_gain=torch.tensor([[4.0, 1.0]]),
        unmask=(UnmaskRect(TRUE, TRUE),),
        stats=StatsRequest(lse=True),
    )
    for merged in (compose([a, b]), compose([b, a])):
        assert merged.bias.tolist() == [[[11.0, 2.0], [21.0, 2.0]]]
        assert merged.score_gain.tolist() == [[[6.0, 5.0]]]
        assert merged.value_gain.tolist() == [[[1.5, 1.0]]]
        assert merged.head_gain.tolist() == [[[2.0, 0.0], [4.0, 6.0]]]
        assert merged.head_score_gain.tolist() == [[2.0, 1.0]]
        assert merged.unmask == b.unmask
        assert merged.stats is b.stats
    assert len(compose([a, b, b.replace(stats=None)]).unmask) == 2


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_composed_edits_do_what_their_parts_do(backend):
    """Removing keys, redistributing what the softmax gives, cutting a head: one edit, the fixed order."""
    q, k, v = tensors()
    removed = torch.tensor([[[0.0, -torch.inf, 0.0, 0.0, 0.0]]])
    policy = AttentionEdit(channels=groups(), policy=move_mass())
    cut = AttentionEdit(head_gain=torch.tensor([[1.0, 0, 1, 1, 0, 1]]))
    kept = [0, 2, 3, 4]
    fewer = Channels(torch.tensor([[0, 2, 0, 1]], dtype=torch.uint8), 3)
    want, _ = attend(q, k[:, :, kept], v[:, :, kept], policy.replace(channels=fewer), backend="reference")
    want = want * cut.head_gain[..., None, None]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        edits = [AttentionEdit(bias=removed), policy, cut]
        out, _ = attend(q, k, v, compose([edits[i] for i in order]), backend=backend)
        torch.testing.assert_close(out, want)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (
            {"channels": groups(), "policy": move_mass()},
            {"channels": groups(), "policy": move_mass()},
            "`policy`",
        ),
        ({"stats": StatsRequest()}, {"stats": StatsRequest()}, "one recording"),
        ({"score_slope": torch.zeros(1, 1, 1)}, {"score_slope": torch.zeros(1, 1, 1)}, "`score_slope`"),
        ({"score_slope": torch.zeros(1, 1, 1)}, {"score_gain": torch.ones(1, 1, 1)}, "do not commute"),
        ({"head_score_gain": torch.ones(1, HQ)}, {"score_slope": torch.zeros(1, 1, 1)}, "do not commute"),
        ({"head_mean_slope": torch.zeros(1, 1, 1)}, {"score_slope": torch.zeros(1, 1, 1)}, "do not commute"),
        ({"head_mean_slope": torch.zeros(1, 1, 1)}, {"score_gain": torch.ones(1, 1, 1)}, "do not commute"),
        ({"spread": TRUE}, {"bias": torch.zeros(1, 1, 1)}, "sets `spread`"),
        (
            {"spread": TRUE, "bias": torch.zeros(1, 1, 1)},
            {"spread": TRUE, "bias": torch.zeros(1, 1, 1)},
            "`spread`",
        ),
        (
            {"bias": torch.zeros(1, 1, 1), "rows": RowSelection(torch.tensor([0]))},
            {"bias": torch.zeros(1, 1, 1), "rows": RowSelection(torch.tensor([1]))},
            "different query rows",
        ),
        (
            {"bias": torch.zeros(1, 1, 1)},
            {"value_gain": torch.ones(1, 1, 1), "rows": RowSelection(torch.tensor([1]))},
            "different query rows",
        ),
    ],
)
def test_combinations_without_a_meaning_are_refused(a, b, said):
    for first, second in ((a, b), (b, a)):
        with pytest.raises(CompositionError, match=re.escape(said)):
            compose([AttentionEdit(**first), AttentionEdit(**second)])


def test_row_selections_compose_when_they_are_equal_or_only_one_changes_weights():
    active = torch.tensor([[True, False], [True, True]])
    rows, same, all_rows = (RowSelection(torch.tensor([0, 2]), a) for a in (active, active.clone(), None))
    bias = torch.zeros(1, 1, 1)
    assert compose([AttentionEdit(bias=bias, rows=rows), AttentionEdit(bias=bias, rows=same)]).rows is rows
    with pytest.raises(CompositionError):
        compose([AttentionEdit(bias=bias, rows=rows), AttentionEdit(bias=bias, rows=all_rows)])
    gain = AttentionEdit(head_gain=torch.ones(1, HQ))
    for order in ([0, 1], [1, 0]):
        pair = [AttentionEdit(bias=bias, rows=rows), gain]
        assert compose([pair[i] for i in order]).rows is rows
