"""Methods on families of models: each runs there, in a batch as alone, or raises the reason it does not."""

from __future__ import annotations

import method_families
import pytest
import torch
from acting_methods import INSIDE, SEVERAL
from family_checks import Case, case_of, same_alone
from method_families import FAMILIES, WORKS
from models import logits_of
from zoo.every import INSTALLED, VISION, runs, skip_if_older

from regaze.errors import UnsupportedModelError
from regaze.interventions import PAI, FarSight, FastV, HeadKnockout
from regaze.interventions.controls import (
    NearTie,
    PlausibilityCut,
    RandomHeads,
    RandomTokens,
    UniformColumns,
    UniformSink,
)
from regaze.toolkit.model import compat

CONTROLS = (
    NearTie(mass=0.0, gap=2.0),
    PlausibilityCut(0.9),
    RandomHeads(HeadKnockout(heads=((0, 0), (1, 1)))),
    RandomTokens(FastV(first_layer=1, remove=False)),
    UniformColumns(PAI(alpha=3.0, gamma=1.0)),
    UniformSink(FarSight(sigma=0.1)),
)
RECORDED = method_families.recorded()


@pytest.fixture(params=FAMILIES, scope="module")
def case(request) -> Case:
    entry = next(each for each in VISION if each.name == request.param)
    skip_if_older(entry)
    if not runs(entry):
        pytest.skip(f"{entry.name} does not run under this transformers")
    return case_of(entry)


def test_every_method_works_or_says_why_not_as_the_table_says(case):
    """Also that nothing of them is left in the model."""
    found = method_families.outcomes(case.entry, sorted([*INSIDE, *SEVERAL]))
    recorded = {name: RECORDED.get(name, {}).get(case.entry.name) for name in found}
    assert method_families.WRONG not in found.values()
    if str(INSTALLED).startswith(compat.NEWEST):  # whose classes messages name
        assert found == recorded, method_families.STALE
    else:
        assert {name: found[name] == WORKS for name in found} == {
            name: outcome == WORKS for name, outcome in recorded.items()
        }


def test_the_table_is_of_ten_families_and_more():
    assert len(FAMILIES) >= 10
    for name in sorted([*INSIDE, *SEVERAL]):
        assert [*RECORDED.get(name, {})] == [*FAMILIES], method_families.STALE
        assert WORKS in RECORDED[name].values()


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_controls_work(case, control):
    plain = case.plain
    if case.crosses and isinstance(control, RandomTokens):
        with case.gaze.using(control), pytest.raises(UnsupportedModelError, match="cross-attention"):
            logits_of(case.model, case.inputs(0, 1), tokens=1)
        return
    with case.gaze.using(control):
        edited = logits_of(case.model, case.inputs(0, 1))
        assert not edited.isnan().any()
        assert not torch.equal(edited, plain)
        same_alone(case, edited)
    assert torch.equal(logits_of(case.model, case.inputs(0, 1)), plain)
