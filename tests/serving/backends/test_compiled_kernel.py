"""Engines whose edited rows run in Numba's kernel, as they do on a CPU where nobody chooses otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from served import by_engine, mixed, named

pytestmark = pytest.mark.vllm
pytest.importorskip("numba")  # and an engine starts all the same


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """How many rows the kernel was given, by call."""
    from regaze.kernels.numba.paged import PagedRows

    monkeypatch.setenv("REGAZE_BACKEND", "auto")
    counts: list[int] = []
    known = PagedRows._add

    def counted(self: Any, program: Any, start: int, count: int, *place: int) -> None:
        counts.append(count)
        known(self, program, start, count, *place)

    monkeypatch.setattr(PagedRows, "_add", counted)
    return counts


@pytest.mark.parametrize("name", ["adhh", "knockout", "pai", "sparc", "vaf", "var"])
def test_a_mixed_batch_answers_as_transformers_do(engine, asked, rows, name):
    edited, plain = asked.by_transformers(named(name)), asked.by_transformers()
    wanted = [plain[i] if i % 4 == 3 else row for i, row in enumerate(edited)]
    assert by_engine(engine, asked, mixed([named(name)], len(wanted))) == wanted
    assert rows


def test_layers_that_do_the_same_are_packed_once(engine, asked, rows, monkeypatch):
    from regaze.kernels.numba.paged import PagedRows

    run, runs = PagedRows.run, list[int]()
    monkeypatch.setattr(PagedRows, "run", lambda self, tensors: (runs.append(1), run(self, tensors)))
    by_engine(engine, asked, [{"regaze": named("pai")}] * 12, tokens=4)
    layers = engine.llm_engine.model_config.hf_text_config.num_hidden_layers
    assert len(rows) <= 12 * (len(runs) // layers + 1)  # a call for each request and forward, not each layer


def test_rows_of_a_prompt_run_in_it(engine, asked, rows):
    by_engine(engine, asked, [{"regaze": named("var")}] * 12, tokens=1)
    assert max(rows) > 1
