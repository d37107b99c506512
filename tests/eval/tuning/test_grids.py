"""Grids of parameters, and which of their combinations are tried."""

from __future__ import annotations

import pytest

from regaze.errors import BadParameterError, InputError, UnknownParameterError
from regaze.eval import Tuning
from regaze.eval.tuning.grids import draw_trials, make_trials
from regaze.interventions import GIFT, PAI, VAR


def test_several_parameters_are_a_product():
    trials = make_trials("gift", GIFT(as_released=True), {"alpha": [1, 2.5], "layers": [(0, 1), None]})
    assert [trial.label for trial in trials] == [
        "alpha=1, layers=[0, 1]",
        "alpha=1, layers=null",
        "alpha=2.5, layers=[0, 1]",
        "alpha=2.5, layers=null",
    ]
    assert [trial.method for trial in trials[1:3]] == [
        GIFT(alpha=1, as_released=True),
        GIFT(alpha=2.5, layers=(0, 1), as_released=True),
    ]
    assert trials[3].parameters == {"alpha": 2.5, "layers": None}


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        (
            {"alhpa": [1]},
            UnknownParameterError,
            "gift has no parameter 'alhpa' to try; did you mean 'alpha'",
        ),
        ({"alpha": []}, BadParameterError, r"the grid of alpha is \[\]; expected a list with at least one"),
        ({"alpha": "124"}, BadParameterError, "the grid of alpha is '124'; expected a list"),
        ({}, BadParameterError, "gift: the grid has no parameter"),
        ({"alpha": [1, "strong"]}, BadParameterError, "'gift': alpha must be float >= 0"),
        ({"alpha": [1, -2]}, BadParameterError, "alpha must be float >= 0 or None, got -2"),
        ({"alpha": [1, 2, 1.0]}, BadParameterError, "gift: alpha=1 comes twice in the grid"),
    ],
)
def test_a_grid_that_the_method_cannot_take_is_refused(grid, error, message):
    with pytest.raises(error, match=message):
        make_trials("gift", GIFT(), grid)


def test_methods_that_are_no_dataclasses_have_no_grid():
    with pytest.raises(BadParameterError, match="mine: object is no dataclass"):
        make_trials("mine", object(), {"alpha": [1]})


def test_as_many_trials_of_each_method_are_drawn():
    grids = {"gift": {"alpha": [1, 2, 3, 4, 5]}, "pai": {"alpha": [0.1, 0.2], "gamma": [1.0, 1.1]}}
    tuning, methods = Tuning(grids, trials=3, seed=5), {"gift": GIFT(), "pai": PAI(), "var": VAR()}
    every = tuning.trials_of(methods)
    assert {label: len(trials) for label, trials in every.items()} == {"gift": 5, "pai": 4}
    drawn = tuning.drawn(every)
    for label, trials in drawn.items():
        assert len(trials) == 3
        assert [trial for trial in every[label] if trial in trials] == list(trials)  # in the grid's order
    assert drawn == tuning.drawn(every)
    others = {tuple(t.label for t in draw_trials("gift", every["gift"], 3, seed)) for seed in range(20)}
    assert len(others) > 5
    assert Tuning(grids).drawn(every) == every
    for number in (0, 5):
        with pytest.raises(BadParameterError, match=f"{number} trials of each method: the grid of"):
            Tuning(grids, trials=number).drawn(every)


def test_a_grid_belongs_to_a_method_of_the_run():
    with pytest.raises(InputError, match=r"'gift' has a grid .* among the methods that are compared: var"):
        Tuning({"gift": {"alpha": [1]}}).trials_of({"var": VAR()})
    with pytest.raises(InputError, match="nothing to tune"):
        Tuning({}).trials_of({"var": VAR()})
