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


@pytest.mark.parametrize(
    ("verdicts", "holds"),
    [
        ({"demo": "damages", "bed-0": "better", "bed-1": "better"}, True),
        ({"demo": "better", "bed-0": "better", "bed-1": "no difference shown"}, False),
        ({"demo": "better", "bed-0": "better"}, None),
    ],
)
def test_a_verdict_holds_where_all_trainings_have_it(verdicts, holds):
    models = {name: {"methods": {"pai": {"verdict": verdict}}} for name, verdict in verdicts.items()}
    found = across(PLAN, models)["pai"]
    assert found == {
        "verdicts": verdicts,
        "groups": {"bed": {"models": ["bed-0", "bed-1"], "holds": holds}},
        "holds": holds,
    }


def test_without_several_trainings_nothing_can_hold():
    models = {"demo": {"methods": {"pai": {"verdict": "better"}}}}
    alone = PLAN.model_copy(update={"models": {"demo": PLAN.models["demo"]}})
    assert across(alone, models)["pai"] == {"verdicts": {"demo": "better"}, "groups": {}, "holds": None}
