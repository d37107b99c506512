"""benchmarks/attend_cases.py on fewer cases than its committed run, and what that run found."""

from __future__ import annotations

import json

import pytest
from paths import ROOT
from scripts import load_script

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_script(BENCHMARKS / "attend_cases.py")


def check(report: dict, cases: int) -> None:
    total = report["rows"][-1]
    assert total["cases"] == cases
    assert total["over_budget"] == 0
    assert total["nan_mismatches"] == 0
    assert {row["dtype"] for row in report["rows"]} == {"float32", "bfloat16", "float16", "all"}


def test_random_calls_stay_within_the_budget_and_finite(script):
    check(script.run(200, 1, "torch"), 200)


def test_the_committed_run_of_ten_thousand_cases():
    report = json.loads((BENCHMARKS / "results" / "attend-cases.json").read_text())
    check(report, 10_000)
    features = {
        "sinks",
        "softcap",
        "windows",
        "sliding cache",
        "MoveMass",
        "unmask",
        *(f"{n} query heads per key head" for n in (1, 3, 6, 7, 8)),
    }
    assert all(report["coverage"][feature] > 100 for feature in features)
