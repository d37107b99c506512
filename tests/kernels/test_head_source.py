"""Heads with the maps of other heads: given or chosen, what the choice counts, what stays their own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from kernel_cases import random_like

from regaze.errors import BadParameterError, CompositionError, ShapeError
from regaze.kernels import AttentionEdit, HeadSource, Placeable, StatsRequest, attend, compose

B, H, HKV, L, D = 2, 6, 2, 9, 8
BACKENDS = ("reference", "torch")


@dataclass(frozen=True, eq=False)
class Note(Placeable):
    """A rule that keeps what it is given, and lends head 3's map."""

    given: list

    def __call__(self, received, seen):
        self.given.append((received, seen))
        return torch.full(received.shape[:2], 3)


def tensors(queries=L, keys=L, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [random_like(g, B, h, n, D) for h, n in ((H, queries), (HKV, keys), (HKV, keys))]


def maps(q, k, v, edit=None, **options):
    """[B, Hq, Lq, Lk]"""
    edit = AttentionEdit() if edit is None else edit
    request = StatsRequest(full_rows=True, edited=True)
    return attend(q, k, v, edit.replace(stats=request), **options)[1].slices


@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("queries", [1, L])
def test_heads_have_the_maps_of_their_sources_and_their_own_values(backend, queries):
    q, k, v = tensors(queries)
    index = torch.tensor([[1, 1, 5, 0, 4, 2], [0, 0, 0, 3, 3, 5]])
    options = {"is_causal": True, "backend": backend}
    own = maps(q, k, v, **options)
    want = torch.stack([row[i] for row, i in zip(own, index, strict=True)])
    edit = AttentionEdit(head_source=HeadSource(index))
    torch.testing.assert_close(maps(q, k, v, edit, **options), want)
    out = attend(q, k, v, edit, **options)[0]
    torch.testing.assert_close(out, want @ v.repeat_interleave(H // HKV, 1))
    unedited = edit.replace(stats=StatsRequest(full_rows=True, lse=True))
    again, stats = attend(q, k, v, unedited, **options)
    torch.testing.assert_close(stats.slices, own)
    assert torch.equal(again, out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_itself_as_the_source_is_no_change(backend):
    q, k, v = tensors()
    edit = AttentionEdit(head_source=HeadSource(torch.arange(H)[None]))
    got, want = (attend(q, k, v, e, is_causal=True, backend=backend)[0] for e in (edit, None))
    torch.testing.assert_close(got, want)
    assert not edit.neutral
    assert AttentionEdit().uses_own_weights


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_rest_of_an_edit_is_the_heads_own(backend):
    """Its gain, bias and sink logit; the mask, where it differs between heads, is part of the scores."""
    q, k, v = tensors()
    mask = torch.randn(1, H, L, L, generator=torch.Generator().manual_seed(4)).masked_fill(
        ~torch.ones(L, L).tril().bool(), -torch.inf
    )
    index = torch.tensor([[2, 2, 2, 0, 0, 0]])
    bias, sinks = random_like(torch.Generator().manual_seed(5), 1, H, 4), torch.linspace(-1, 2, H)
    gain = torch.tensor([[1.0, 0.0, 1.0, 2.0, 1.0, 1.0]])
    edit = AttentionEdit(bias=bias, head_gain=gain, head_source=HeadSource(index))
    got = attend(q, k, v, edit, mask=mask, sinks=sinks, backend=backend)[0]
    keys = k.repeat_interleave(H // HKV, 1)
    scores = (q @ keys.mT * D**-0.5 + mask)[:, index[0]]
    scores[..., :4] += bias[:, :, None]
    columns = torch.cat([scores, sinks[None, :, None, None].expand(B, -1, L, -1)], -1)
    want = columns.softmax(-1)[..., :-1] @ v.repeat_interleave(H // HKV, 1) * gain[..., None, None]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


MASKS = {
    "causal": (None, True),
    "none": (None, False),
    "padded": (torch.ones(L, L).tril().bool() & (torch.arange(L) > 1), False),
    "additive": (torch.zeros(L, L).masked_fill(~torch.ones(L, L).tril().bool(), -torch.inf), False),
    "prefix": (torch.ones(L, L).tril().bool() | (torch.arange(L) < 4), False),
}


@pytest.mark.parametrize(
    ("backend", "softcap", "kind"),
    [
        *((backend, softcap, kind) for backend in BACKENDS for softcap in (None, 1.5) for kind in MASKS),
        pytest.param("triton", 1.5, "causal", marks=pytest.mark.slow),
    ],
)
def test_a_rule_is_given_what_keys_receive_from_other_rows(backend, kind, softcap):
    mask, causal = MASKS[kind]
    mask = None if mask is None else mask[None, None]
    q, k, v = tensors()
    rows = torch.ones(B, L, dtype=torch.bool)
    rows[0, :2] = rows[1, 5] = False
    options = {"mask": mask, "is_causal": causal, "softcap": softcap, "backend": backend}
    weights = maps(q, k, v, **options)
    others = weights * (1 - torch.eye(L)) * rows[:, None, :, None]
    whole = torch.ones(L, L).tril().bool() if causal else torch.ones(L, L).bool()
    shown = whole if mask is None else mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
    seen = (shown & ~torch.eye(L).bool() & rows[:, :, None]).sum(1)
    note = Note([])
    edit = AttentionEdit(head_source=HeadSource(rule=note, rows=rows))
    got = maps(q, k, v, edit, **options)
    ((received, counted),) = note.given
    torch.testing.assert_close(received, others.sum(2), rtol=1e-4, atol=2e-6)
    assert torch.equal(counted.expand(B, 1, L)[:, 0].long(), seen)
    torch.testing.assert_close(got, weights[:, 3:4].expand_as(got))


def test_a_longer_static_cache_and_rows_that_are_no_keys():
    """Empty keys after the prompt are hidden by the mask; without one, rows and keys must be the same."""
    q, k, v = tensors()
    notes = Note([]), Note([])
    longer = [torch.cat([x, torch.randn(B, HKV, 3, D)], 2) for x in (k, v)]
    visible = torch.ones(1, 1, L, L).tril().bool()
    for note, (key, value), mask in (
        (notes[0], (k, v), visible),
        (notes[1], longer, torch.nn.functional.pad(visible, (0, 3), value=False)),
    ):
        attend(q, key, value, AttentionEdit(head_source=HeadSource(rule=note)), mask=mask)
    (one,), (other,) = (note.given for note in notes)
    torch.testing.assert_close(other[0][..., :L], one[0])
    assert not other[0][..., L:].any()
    with pytest.raises(ShapeError, match="a whole prompt"):
        attend(q[:, :, :4], k, v, AttentionEdit(head_source=HeadSource(rule=Note([]))), is_causal=True)


def test_what_does_not_fit():
    with pytest.raises(BadParameterError, match="either an `index` or a `rule`"):
        HeadSource()
    with pytest.raises(ShapeError, match=r"HeadSource.index must be \[B or 1, Hq\] int64"):
        HeadSource(torch.zeros(H, dtype=torch.int64))
    q, k, v = tensors()
    edit = AttentionEdit(head_source=HeadSource(torch.zeros(1, H + 1, dtype=torch.int64)))
    with pytest.raises(ShapeError, match=r"HeadSource[.]index is"):
        attend(q, k, v, edit)
    rows = torch.ones(1, L - 1, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"HeadSource[.]rows is"):
        attend(q, k, v, AttentionEdit(head_source=HeadSource(rule=Note([]), rows=rows)))
    source = AttentionEdit(head_source=HeadSource(torch.zeros(1, H, dtype=torch.int64)))
    with pytest.raises(CompositionError, match="head_source"):
        compose([source, source])
    assert compose([source, AttentionEdit(head_gain=torch.ones(1, H))]).head_source is source.head_source


def test_gradients_reach_queries_and_keys_of_the_source():
    q, k, v = (x.requires_grad_() for x in tensors())
    edit = AttentionEdit(head_source=HeadSource(rule=Note([])))
    attend(q, k, v, edit, is_causal=True)[0].sum().backward()
    assert q.grad[:, 3].any()
    assert not q.grad[:, [0, 1, 2, 4, 5]].any()
    assert v.grad.any()
