"""From --method, --set and --methods to methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regaze.arguments import parameter_types, parse_typed, split_assignments
from regaze.cli import console
from regaze.errors import BadParameterError, InputError, UnknownParameterError
from regaze.interventions import HeadKnockout, Method, registry
from regaze.reading import parse_yaml, read_text


def read_method(name: str, settings: list[str] | None) -> Method | None:
    """The method called `name` with the values of --set; None for "none".

    Raises:
        UnknownMethodError, UnknownParameterError, BadParameterError: the message names what is allowed. Also
            for a knockout of no head: a neutral element in Python, a mistake on the command line; and for a
            method that lacks what it needs.
    """
    if name == "none":
        if settings:
            raise UnknownParameterError(f"--set {settings[0]}: there is no method to set it on; add --method")
        return None
    cls = registry.method_class(name)
    values = split_assignments(settings or [], "--set")
    chosen = registry.method_from_dict(
        {**parse_typed(values, parameter_types(cls), "--set "), "method": name}
    )
    if isinstance(chosen, HeadKnockout) and not chosen.heads:
        raise BadParameterError(f"--method {name}: no heads to remove; add --set heads=[[3,1],[4,0]]")
    if chosen.lacks:
        raise BadParameterError(f"--method {name}: {chosen.lacks}")
    return chosen


def read_methods(text: str) -> dict[str, Method]:
    """Methods by label, from names, "all", the name of a file, or a JSON list.

    Raises:
        InputError: no method, a repeated label, a file without such a list.
        UnknownMethodError, UnknownParameterError, BadParameterError: see `regaze.interventions.registry`.
    """
    if text == "all":
        for name, lacks in registry.lacking_methods().items():
            console.info(f"regaze: left out: {name}: {lacks}")
        return registry.default_methods(lambda reason: console.info(f"regaze: left out: {reason}"))
    methods: dict[str, Method] = {}
    for entry in _entries(text):
        chosen = registry.method_from_dict({k: v for k, v in entry.items() if k != "label"})
        label = str(entry.get("label", chosen.name))
        if label in methods:
            raise InputError(f"--methods: {label!r} twice; give each its own label")
        if chosen.lacks:
            raise BadParameterError(f"--methods: {label}: {chosen.lacks}")
        methods[label] = chosen
    if not methods:
        raise InputError("--methods: no method was given")
    return methods


def _entries(text: str) -> list[dict[str, Any]]:
    """Descriptions of methods: {"method": name, parameter: value, ...}, perhaps with a "label"."""
    if text.lstrip().startswith("["):
        return _list(text, "--methods")
    if Path(text).suffix not in (".json", ".yaml", ".yml"):
        names = [name.strip() for name in text.split(",")]
        return [{"method": registry.registered_name(name)} for name in names if name]
    return _list(read_text(text, "--methods "), f"--methods {text}")


def _list(text: str, source: str) -> list[dict[str, Any]]:
    entries = parse_yaml(text, source)  # JSON is YAML, too
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{source}: expected a list of {{label, method, parameters...}}")
    return entries
