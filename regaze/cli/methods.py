"""From --method, --set and --methods to methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regaze.arguments import parameter_types, parse_typed, split_assignments
from regaze.cli import console
from regaze.errors import BadParameterError, InputError, UnknownParameterError
from regaze.interventions import HeadKnockout, Method, registry
from regaze.reading import parse_yaml, read_text


def read_method(name: str, settings: list[str] | None, *, varied: bool = False) -> Method | None:
    """The method called `name` with the values of --set; None for "none".

    Args:
        varied: further values come, so that it need not act yet.

    Raises:
        UnknownMethodError, UnknownParameterError, BadParameterError: the message names what is allowed. Also
            for a knockout of no head: a neutral element in Python, a mistake on the command line; and for a
            method that lacks what it needs.
    """
    if name == "none":
        if settings:
            raise UnknownParameterError(f"--set {settings[0]}: there is no method to set it on; add --method")
        return None
    given = _read_settings(settings)
    _, chosen = _labelled({"method": name}, given, alone=True)
    for label, parameter in given:
        raise InputError(f"--set {label}:{parameter}=...: the method is {name}")
    if not varied:
        _check_that_it_acts(f"--method {name}", chosen)
    return chosen


def read_methods(text: str, settings: Sequence[str] | None = None) -> dict[str, Method]:
    """Methods by label, from names, "all", the name of a file, or a JSON list.

    Args:
        settings: texts METHOD:NAME=VALUE; of a single method also NAME=VALUE.

    Raises:
        InputError: no method, a repeated label, a file without such a list, a setting of no method here.
        UnknownMethodError, UnknownParameterError, BadParameterError: see `regaze.interventions.registry`.
    """
    given = _read_settings(settings)
    if text == "all":
        if given:
            raise InputError("--set: name the methods that are compared by --methods")
        for name, lacks in registry.lacking_methods().items():
            console.info(f"regaze: left out: {name}: {lacks}")
        return registry.default_methods(lambda reason: console.info(f"regaze: left out: {reason}"))
    entries = _entries(text)
    methods: dict[str, Method] = {}
    for entry in entries:
        label, chosen = _labelled(entry, given, alone=len(entries) == 1)
        if label in methods:
            raise InputError(f"--methods: {label!r} twice; give each its own label")
        _check_that_it_acts(f"--methods: {label}", chosen)
        methods[label] = chosen
    if not methods:
        raise InputError("--methods: no method was given")
    for method, name in given:
        if method is None:
            raise BadParameterError(f"--set {name}=...: of which method? Give METHOD:{name}=VALUE")
        raise InputError(f"--set {method}:{name}=...: {method} is not among {', '.join(methods)}")
    return methods


def _check_that_it_acts(place: str, chosen: Method) -> None:
    """Raise BadParameterError where a method lacks what it needs; say so where it changes nothing."""
    if isinstance(chosen, HeadKnockout) and not chosen.heads:
        raise BadParameterError(f"{place}: no heads to remove; add --set heads=[[3,1],[4,0]]")
    if chosen.lacks:
        raise BadParameterError(f"{place}: {chosen.lacks}")
    if chosen.is_identity:
        console.info(f"regaze: {place} changes nothing as it is set: {chosen!r}")


def _read_settings(settings: Sequence[str] | None) -> dict[tuple[str | None, str], str]:
    """{(method or None, parameter): text} of texts NAME=VALUE or METHOD:NAME=VALUE."""
    found: dict[tuple[str | None, str], str] = {}
    for left, value in split_assignments(settings or (), "--set").items():
        method, _, name = left.rpartition(":")
        found[registry.registered_name(method) if method else None, name] = value
    return found


def _labelled(
    entry: Mapping[str, Any], settings: dict[tuple[str | None, str], str], alone: bool
) -> tuple[str, Method]:
    """The label and the method of a description, with its settings, which are taken out of `settings`.

    Args:
        alone: settings that name no method are its own.
    """
    described = {key: value for key, value in entry.items() if key != "label"}
    name = described.get("method")
    names = name, entry.get("label", name), *([None] if alone else [])  # of any type so far
    own = {key[1]: settings.pop(key) for key in list(settings) if key[0] in names}
    if own and isinstance(name, str):
        described |= parse_typed(own, parameter_types(registry.method_class(name)), "--set ")
    chosen = registry.method_from_dict(described)
    return str(entry.get("label", chosen.name)), chosen


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
