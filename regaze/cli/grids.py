"""From --tune and --grid to grids of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from regaze.arguments import parameter_types, parse_typed
from regaze.cli.groups import TuningOptions
from regaze.errors import BadParameterError
from regaze.eval import Tuning
from regaze.eval.tuning.division import HALF
from regaze.interventions import Method, registry

_EXAMPLE = "gift:alpha=1,2,4"


def read_tuning(options: TuningOptions, methods: Mapping[str, Method]) -> Tuning | None:
    """The tuning that the options describe; None without --tune.

    Raises:
        BadParameterError: an option of tuning without --tune, or a grid that cannot be read.
        UnknownParameterError: a parameter that the method does not have.
    """
    if not options.tune:
        for name, value in asdict(options).items():
            if value is not None:
                raise BadParameterError(
                    f"--{name.replace('_', '-')} {value}: nothing is tuned; add --tune {_EXAMPLE}"
                )
        return None
    grids: dict[str, dict[str, list[Any]]] = {}
    for text in options.tune:
        label, parameter, values = split_grid(text)
        label = label if label in methods else registry.registered_name(label)
        if label not in methods:
            raise BadParameterError(
                f"--tune {text}: {label!r} is not among the methods that are compared: {', '.join(methods)}"
            )
        grid = grids.setdefault(label, {})
        _add_values(grid, parameter, values, methods[label], f"--tune {label}:")
    split, seed = options.tune_split or HALF, options.tune_seed or 0
    return Tuning(grids, split, seed, options.tune_criterion, options.tune_trials)


def tuned_names(texts: Iterable[str]) -> str:
    """The methods that --tune names, each once, separated by commas."""
    return ",".join(dict.fromkeys(split_grid(text)[0] for text in texts))


def read_grid(texts: Sequence[str], method: Method) -> dict[str, list[Any]]:
    """The grid of --grid NAME=VALUE,VALUE,... Raises as `read_tuning`."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        parameter, equals, values = text.partition("=")
        if not equals or not parameter.strip():
            raise BadParameterError(f"--grid {text}: expected NAME=VALUES such as alpha=0,1,2,4")
        _add_values(grid, parameter.strip(), values, method, "--grid ")
    if not grid:
        raise BadParameterError(f"no values to try: add --grid, such as --grid {_EXAMPLE.partition(':')[2]}")
    return grid


def split_grid(text: str) -> tuple[str, str, str]:
    """Label, parameter and values of "gift:alpha=1,2,4"; a label may hold colons."""
    left, equals, values = text.partition("=")
    label, _, parameter = left.rpartition(":")
    if not equals or not label.strip() or not parameter.strip():
        raise BadParameterError(f"--tune {text}: expected METHOD:NAME=VALUES such as {_EXAMPLE}")
    return label.strip(), parameter.strip(), values


def split_values(text: str) -> list[str]:
    """The parts between commas, but not those inside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _add_values(grid: dict[str, list[Any]], name: str, text: str, method: Method, prefix: str) -> None:
    if name in grid:
        raise BadParameterError(
            f"{prefix}{name}={text}: {name} was given before; put all its values into one list"
        )
    values = split_values(text)
    if "" in values:
        raise BadParameterError(f"{prefix}{name}={text}: a value is missing; expected such as {name}=1,2,4")
    types = parameter_types(type(method))
    grid[name] = [parse_typed({name: value}, types, prefix)[name] for value in values]
