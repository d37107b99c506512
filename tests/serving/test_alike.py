"""Requests with the same methods on the same tokens: what was found about one serves the others."""

from __future__ import annotations

from typing import Any

import pytest
from served import by_engine, named

from regaze import PAI
from regaze.errors import RegazeError
from regaze.serving.common.newest import Newest


def test_the_newest_values_stay():
    newest = Newest[str, int](2)
    for number, key in enumerate("abac"):
        newest[key] = number
    assert newest == {"a": 2, "c": 3}


@pytest.fixture
def judged(monkeypatch) -> list[Any]:
    """The requests that were looked at anew."""
    from regaze.serving.frontend.admission import Admission

    found, judge = [], Admission._judge

    def counted(self: Any, *args: Any) -> Any:
        found.append(args)
        return judge(self, *args)

    monkeypatch.setattr(Admission, "_judge", counted)
    return found


@pytest.mark.vllm
@pytest.mark.parametrize("name", ["knockout", "pai", "var"])
def test_a_question_that_was_asked_before_is_answered_as_then(engine, asked, judged, name):
    engine.llm_engine.input_processor.__dict__.pop("_regaze_admission", None)
    extra, wanted = [{"regaze": named(name)}] * 12, asked.by_transformers(named(name))
    assert by_engine(engine, asked, extra) == wanted
    assert judged
    judged.clear()
    assert by_engine(engine, asked, extra) == wanted
    assert not judged


@pytest.mark.vllm
def test_methods_prepare_once_for_all_questions_alike(engine, asked, monkeypatch):
    engine.llm_engine.input_processor.__dict__.pop("_regaze_admission", None)
    prepared, prepare = [], PAI.prepare

    def counted(self: PAI, context: Any) -> None:
        prepared.append(context.prompt_length)
        prepare(self, context)

    monkeypatch.setattr(PAI, "prepare", counted)
    method = {"method": "pai", "gamma": 1.0, "alpha": 0.77}  # one that nobody has asked for
    wanted = asked.by_transformers(method)
    prepared.clear()
    assert by_engine(engine, asked, [{"regaze": method}] * 12) == wanted
    assert prepared
    prepared.clear()
    assert by_engine(engine, asked, [{"regaze": method}] * 12) == wanted
    assert not prepared


@pytest.mark.vllm
def test_other_methods_and_records_are_looked_at_anew(engine, asked, judged, tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_SERVING_RECORDS", str(tmp_path))
    for extra in ({"regaze": named("knockout")}, {"regaze": named("pai")}, {"regaze": named("vcd")}):
        by_engine(engine, asked, [extra] * 12, tokens=1)
    judged.clear()
    recorded = {"regaze": named("pai"), "regaze_record": True}
    other = {"regaze": {**named("pai"), "alpha": 0.7}}
    for extra in (recorded, other, {"regaze": named("vcd")}):
        by_engine(engine, asked, [extra, *[None] * 11], tokens=1)
    assert len(judged) == 3


@pytest.mark.vllm
def test_what_was_refused_is_refused_again(engine, asked):
    for _ in range(2):
        with pytest.raises(RegazeError, match="does not exist"):
            by_engine(engine, asked, [{"regaze": {"method": "knockout", "heads": [[0, 99]]}}] * 12)
