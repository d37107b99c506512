"""Grids of parameters, and the trials of a method on them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from regaze.errors import BadParameterError, UnknownParameterError
from regaze.names import suggestion

#: {parameter: the values to try}
Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Trial:
    """A method with the parameters of one point of a grid.

    Attributes:
        label: the parameters as text, "alpha=1, beta=2". parameters: by name, as JSON values.
    """

    label: str
    parameters: Mapping[str, Any]
    method: Any


def make_trials(name: str, method: Any, grid: Grid) -> tuple[Trial, ...]:
    """The method with each combination of the grid's values; the last parameter varies first.

    Args:
        name: label of the method, for errors.
        method: a frozen dataclass, whose other parameters stay.

    Raises:
        UnknownParameterError: a parameter that the method does not have.
        BadParameterError: no parameter or value, a combination that the method does not take, or one twice.
    """
    if not is_dataclass(method) or isinstance(method, type):
        raise BadParameterError(f"{name}: {type(method).__name__} is no dataclass, so it has no grid")
    known = [field.name for field in fields(method) if field.init]
    for parameter, values in grid.items():
        if parameter not in known:
            raise UnknownParameterError(
                f"{name} has no parameter {parameter!r} to try{suggestion(parameter, known, 'it has')}"
            )
        if isinstance(values, str) or not len(values):
            raise BadParameterError(
                f"{name}: the grid of {parameter} is {values!r}; expected a list with at least one value"
            )
    if not grid:
        raise BadParameterError(f"{name}: the grid has no parameter; expected values such as alpha=1,2,4")
    trials: list[Trial] = []
    for combination in itertools.product(*grid.values()):
        variant: Any = replace(method, **dict(zip(grid, combination, strict=True)))
        described = variant.to_dict()
        parameters = {parameter: described[parameter] for parameter in grid}
        trial = Trial(
            ", ".join(f"{key}={_text(value)}" for key, value in parameters.items()), parameters, variant
        )
        if any(variant == other.method for other in trials):
            raise BadParameterError(f"{name}: {trial.label} comes twice in the grid; give each value once")
        trials.append(trial)
    return tuple(trials)


def draw_trials(name: str, trials: Sequence[Trial], number: int, seed: int) -> tuple[Trial, ...]:
    """`number` random ones of the trials, in their order; the same for the same seed.

    Raises:
        BadParameterError: there are fewer.
    """
    if not 1 <= number <= len(trials):
        raise BadParameterError(
            f"{number} trials of each method: the grid of {name} has {len(trials)} combinations; give fewer "
            "trials, or more values"
        )
    drawn = sorted(trials, key=lambda trial: _rank(seed, name, trial.label))[:number]
    return tuple(trial for trial in trials if trial in drawn)


def grid_values(trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """{parameter: its values in the trials}, as JSON values in their order."""
    found: dict[str, list[Any]] = {}
    for trial in trials:
        for parameter, value in trial.parameters.items():
            values = found.setdefault(parameter, [])
            if value not in values:
                values.append(value)
    return found


def _rank(*parts: Any) -> str:
    """A random place that depends on the parts alone."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _text(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)
