"""Names of interventions: the built-in ones, and those that other packages announce as entry points.

A third party registers with

    [project.entry-points."regaze.interventions"]
    mymethod = "my_package.module:MyMethod"
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import Any

from regaze.errors import UnknownMethodError
from regaze.interventions.base import Intervention
from regaze.interventions.knockout import HeadKnockout
from regaze.interventions.var import VAR

BUILT_IN: tuple[type[Intervention], ...] = (VAR, HeadKnockout)
GROUP = "regaze.interventions"


def methods() -> dict[str, type[Intervention]]:
    """Every known intervention by name; a built-in name cannot be taken by another package."""
    found: dict[str, type[Intervention]] = {}
    for entry in entry_points(group=GROUP):
        found[entry.name] = entry.load()
    found.update({method.name: method for method in BUILT_IN})
    return dict(sorted(found.items()))


def create(name: str, **parameters: Any) -> Intervention:
    """An intervention by name.

    Raises:
        UnknownMethodError: no such name. UnknownParameterError, BadParameterError: misfits.
    """
    known = methods()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise UnknownMethodError(f"unknown method {name!r}{hint} Known methods: {', '.join(known)}")
    return known[name].from_dict(parameters)


def from_dict(data: dict[str, Any]) -> Intervention:
    """The intervention that `to_dict` described."""
    return create(data["method"], **{key: value for key, value in data.items() if key != "method"})
