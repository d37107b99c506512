"""Plans: those of the package, and what is wrong with others."""

from __future__ import annotations

import pytest

from regaze.audit import AuditPlan, read_plan
from regaze.audit.plan import AuditedModel, plan_names
from regaze.errors import InputError

PLAN = {
    "models": {"demo": {"load": "demo"}},
    "methods": {"pai": {"method": "pai", "grid": {"alpha": [0.1, 0.2]}}},
    "benchmarks": {"pope": {}},
}


@pytest.mark.parametrize("name", plan_names())
def test_plans_of_the_package_have_methods_that_can_be_made(name):
    plan = read_plan(name)
    trials = plan.trials()
    assert plan.name == name
    assert {*map(len, trials.values())} == {3}
    assert plan.damage is not None


def test_each_point_of_a_grid_is_a_trial():
    methods = {
        "pai": {
            "method": "pai",
            "parameters": {"gamma": 1.0},
            "grid": {"alpha": [0.1, 0.3], "beta": [0, 0.1]},
        }
    }
    trials = AuditPlan.model_validate({**PLAN, "methods": methods}).trials()["pai"]
    assert [(each.method.alpha, each.method.beta, each.method.gamma) for each in trials] == [
        (0.1, 0.0, 1.0),
        (0.1, 0.1, 1.0),
        (0.3, 0.0, 1.0),
        (0.3, 0.1, 1.0),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "methods: {pai: {method: pai, grid: {alpha: [1, 2]}}, vcd: {method: vcd, grid: {alpha: [1]}}}",
            "every method has to have as many trials as the others, but the grids have: pai 2, vcd 1",
        ),
        ("benchmarks: {pope: {decides: false}}", "no benchmark decides"),
        ("benchmarks: {pope: {}, mmstar: {}}", "mmstar is of the damage check, and among the benchmarks"),
        ("benchmarks: {pope: {questons: 4}}", "benchmarks.pope.questons: Extra inputs are not permitted"),
        (
            "methods: {yes-offset: {method: pai, grid: {alpha: [0.1]}}}",
            "yes-offset is a control of every method; give yours another label",
        ),
        ("models: {}", "models: Dictionary should have at least 1 item"),
        ("models: {../demo: {load: demo}}", "String should match pattern"),
        ("name: 3", "name: Input should be a valid string"),
    ],
)
def test_what_is_wrong_with_a_plan_is_named(tmp_path, change, message):
    parts = {
        "models": "models: {demo: {load: demo}}",
        "methods": "methods: {pai: {method: pai, grid: {alpha: [0.1, 0.2]}}}",
        "benchmarks": "benchmarks: {pope: {}}",
    }
    parts[change.split(":")[0]] = change
    path = tmp_path / "plan.yaml"
    path.write_text("\n".join(parts.values()))
    with pytest.raises(InputError, match=r"plan\.yaml is no plan of an audit") as caught:
        read_plan(path)
    assert message in str(caught.value)


def test_a_name_that_is_no_plan_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"no plan .quik.*quick"):
        read_plan("quik")
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        read_plan("nowhere.yaml")


def test_trainings_of_the_bed_are_models_of_its_group():
    plan = read_plan("bed")
    more = plan.with_trainings(["runs/one", "runs/two"])
    assert [*more.models] == ["bed", "bed-one", "bed-two"]
    assert {model.group for model in more.models.values()} == {"bed"}
    assert more.models["bed-two"].arguments == {"weights": "runs/two"}
    assert more.extends(plan)
    assert more.extends(more)
    assert not plan.extends(more)
    assert not more.extends(plan.model_copy(update={"seed": 1}))
    with pytest.raises(InputError, match="called bed-one"):
        plan.with_trainings(["a/one", "b/one"])
    with pytest.raises(InputError, match="audits no bed"):
        read_plan("demo").with_trainings(["one"])


def test_a_bed_without_a_group_has_one_with_its_other_trainings():
    alone = AuditPlan.model_validate({**PLAN, "models": {"bed": {"load": "bed"}}})
    more = alone.with_trainings(["one"])
    assert {model.group for model in more.models.values()} == {"bed"}
    assert more.extends(alone)


def test_a_threshold_is_tried_as_often_as_methods():
    assert [each.method.offset for each in AuditPlan.model_validate(PLAN).offsets()] == [-1.0, 1.0]


def test_a_plan_for_another_model_is_called_after_it():
    plan = AuditPlan.model_validate(PLAN).for_model("mine", AuditedModel(load="folder/mine"))
    assert (plan.name, [*plan.models]) == ("audit-mine", ["mine"])
    assert plan.models["mine"].source is None
    assert AuditedModel(load="bed").source == "bed"
