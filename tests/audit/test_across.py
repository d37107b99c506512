"""Verdicts of several trainings of one model."""

from __future__ import annotations

import pytest

from regaze.audit import AuditPlan
from regaze.audit.across import across

PLAN = AuditPlan.model_validate(
    {
        "models": {
            "demo": {"load": "demo"},
            "bed-0": {"load": "bed", "group": "bed"},
            "bed-1": {"load": "bed", "group": "bed", "arguments": {"weights": "one"}},
        },
        "methods": {"pai": {"method": "pai", "grid": {"alpha": [0.1]}}},
        "benchmarks": {"pope": {}},
    }
)


def on(verdict, benchmark="pope"):
    """A method, better on one benchmark where it is better."""
    better = {
        "decides": True,
        "lower_is_better": False,
        "difference": 0.05,
        "p_holm": 0.01,
        "controls": {"sham": {"difference": 0.05}},
        "own_controls": ["sham"],
        "confounds": {"yes_ratio": [0.5, 0.5]},
    }
    return {"verdict": verdict, "benchmarks": {benchmark: better}}


def found(methods):
    return across(PLAN, {name: {"methods": {"pai": method}} for name, method in methods.items()})["pai"]


@pytest.mark.parametrize(
    ("verdicts", "holds"),
    [
        ({"demo": "damages", "bed-0": "better", "bed-1": "better"}, True),
        ({"demo": "better", "bed-0": "better", "bed-1": "no difference shown"}, False),
        ({"demo": "better", "bed-0": "better"}, None),
        ({"demo": "better", "bed-0": "not run", "bed-1": "not run"}, None),
        ({"demo": "better", "bed-0": "damages", "bed-1": "damages"}, True),
    ],
)
def test_a_verdict_holds_where_all_trainings_have_it(verdicts, holds):
    assert found({name: on(verdict) for name, verdict in verdicts.items()}) == {
        "verdicts": verdicts,
        "groups": {"bed": {"models": ["bed-0", "bed-1"], "holds": holds}},
        "holds": holds,
    }


def test_better_on_another_benchmark_is_another_finding():
    assert found({"bed-0": on("better"), "bed-1": on("better", "captions")})["holds"] is False


def test_without_several_trainings_nothing_can_hold():
    models = {"demo": {"methods": {"pai": on("better")}}}
    alone = PLAN.model_copy(update={"models": {"demo": PLAN.models["demo"]}})
    assert across(alone, models)["pai"] == {"verdicts": {"demo": "better"}, "groups": {}, "holds": None}
