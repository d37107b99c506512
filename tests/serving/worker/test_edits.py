"""Rows of several requests in one call, over a cache whose unused room holds anything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from regaze.kernels import AttentionEdit, attend
from regaze.serving.worker.acts import LayerCall
from regaze.serving.worker.edits import EngineEdits

HEADS, SIZE, PAGE = 4, 8, 4
KEYS = (10, 3)


def test_unused_room_of_pages_is_not_read():
    g = torch.Generator().manual_seed(2)
    caches = [torch.randn(5, 2, PAGE, SIZE, generator=g) for _ in range(2)]
    table = torch.tensor([[3, 1, 4], [2, 0, 0]], dtype=torch.int32)
    for cache in caches:  # what nobody has written
        cache[0] = torch.nan
        cache[4, :, 2:] = torch.nan
        cache[2, :, 3:] = torch.nan
    query = torch.randn(len(KEYS), HEADS, SIZE, generator=g)
    edits = [AttentionEdit(bias=torch.randn(1, HEADS, keys, generator=g)) for keys in KEYS]
    options = {"scaling": 0.3, "softcap": None, "sinks": None}
    call = LayerCall(0, query, torch.zeros_like(query), *caches, table, options)
    rows: list[Any] = [
        SimpleNamespace(row=row, span=slice(row, row + 1), stop=keys) for row, keys in enumerate(KEYS)
    ]
    EngineEdits(None)._run_group("kind", list(zip(rows, edits, strict=True)), call)
    for row, (keys, edit) in enumerate(zip(KEYS, edits, strict=True)):
        key, value = (
            cache[table[row].long()].transpose(0, 1).reshape(1, 2, -1, SIZE)[:, :, :keys] for cache in caches
        )
        wanted, _ = attend(query[row, :, None][None], key, value, edit, scaling=0.3)
        torch.testing.assert_close(call.output[row], wanted[0, :, 0])


def test_the_residual_stream_is_added_up_once_for_all_requests(monkeypatch):
    shown, added = [], []
    rows = [
        SimpleNamespace(
            request=SimpleNamespace(
                needs_hidden=True,
                reads_hidden=True,
                context=SimpleNamespace(captured_layers=()),
                show_hidden=lambda layer, rows, hidden: shown.append(hidden.tolist()),
            ),
            step=0,
            again=False,
            span=slice(start, start + 1),
        )
        for start in range(3)
    ]
    edits = EngineEdits(None)
    monkeypatch.setattr(edits, "rows", lambda metadata: rows)

    def stream():
        added.append(1)
        return torch.arange(3.0)[:, None]

    edits.show_hidden(0, stream, None)
    assert shown == [[[0.0]], [[1.0]], [[2.0]]]
    assert added == [1]


class Taken:
    """An act that the compiled kernel takes, or not, or that raises an error."""

    def __init__(self, takes: Any = True):
        self.takes, self.added = takes, 0

    def compile(self, rows: Any, compiled: Any) -> bool:
        self.added += 1
        if isinstance(self.takes, Exception):
            raise self.takes
        return self.takes


def tensors(layout: str = "one") -> Any:
    return SimpleNamespace(layout=layout)


def row(name: str) -> Any:
    return SimpleNamespace(request=SimpleNamespace(name=name, failed=False))


@pytest.fixture
def ran(monkeypatch) -> list[Any]:
    """The packed rows that ran, in turn."""
    paged = pytest.importorskip("regaze.kernels.numba.paged")
    found: list[Any] = []
    monkeypatch.setattr(paged.PagedRows, "run", lambda self, tensors: found.append(self))
    return found


def test_a_layer_that_does_what_the_one_before_did_packs_nothing(ran):
    edits, taken, left = EngineEdits(None), Taken(), Taken(takes=False)
    one, other = row("one"), row("other")
    for _ in range(3):
        assert edits._run_compiled([(one, taken), (other, left)], tensors()) == [(other, left)]
    assert (taken.added, left.added) == (1, 1)
    assert ran[0] is ran[1] is ran[2]
    assert edits._run_compiled([(one, taken)], tensors()) == []  # another row is edited, or none
    edits._run_compiled([(one, taken)], tensors("other"))
    edits._run_compiled([(one, Taken())], tensors("other"))
    assert len({id(each) for each in ran}) == 4
    edits.begin_step([])
    edits._run_compiled([(one, taken)], tensors("other"))
    assert taken.added == 4


def test_nothing_more_is_packed_of_a_request_that_fails(ran):
    edits, one, other, behind, taken = EngineEdits(None), row("one"), row("other"), Taken(), Taken()
    acts = [(one, Taken(ValueError())), (one, behind), (other, taken)]
    assert edits._run_compiled(acts, tensors()) == []
    assert one.request.failed
    assert not other.request.failed
    assert (behind.added, taken.added) == (0, 1)
    assert edits._failed == ["one"]
