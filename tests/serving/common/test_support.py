"""The table of methods: every built-in one is in it, and it says what the rules find."""

from __future__ import annotations

from pathlib import Path

import pytest
from acting_methods import acting

from regaze.interventions import MultiPassMethod
from regaze.interventions.registry import BUILT_IN
from regaze.serving.common.support import REFUSED, RUNS, lacking, table
from regaze.toolkit.model.callback import Callback, prompt_needs

#: Parameters with which a method of the table runs.
RUNNING = {"pai": {"gamma": 1.0}, "vista": {"strength": 0.0}}


def test_the_table_has_every_method_once():
    assert sorted([*RUNS, *REFUSED]) == sorted(BUILT_IN)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_rules_agree_with_the_table(name):
    method = acting(name, **RUNNING.get(name, {}))
    if isinstance(method, MultiPassMethod):
        assert "several passes" in REFUSED[name]
        return
    found = lacking([method])
    assert (found is None) == (name in RUNS)
    assert found is None or found.startswith(f"{name}: it ")


def test_what_reads_more_than_an_engine_shows_says_what():
    assert lacking([acting("paint")]) == "paint: it reads the attention of the vision tower"
    assert lacking([acting("vista")]) == "vista: it edits outputs of MLPs"
    assert lacking([acting("pai", gamma=1.1)]) is None


def test_needs_of_prompts():
    names = {"var": "values", "gift": "rows", "eah": "whole", "sparc": "", "knockout": "", "pai": ""}
    assert {name: prompt_needs(acting(name, **RUNNING.get(name, {}))) for name in names} == names
    assert prompt_needs(acting("var", as_released=True)) == "whole"


def test_what_declares_nothing_needs_whole_prompts_once_it_measures():
    class Measures(Callback):
        def on_stats(self, layer, stats, context):
            pass

    class Reads(Callback):
        needs_hidden_states = True

    assert [prompt_needs(each()) for each in (Callback, Measures, Reads)] == ["", "whole", "whole"]


def test_the_page_has_the_table():
    page = Path(__file__).resolve().parents[3] / "docs" / "serving.md"
    assert table() in page.read_text(encoding="utf-8")
