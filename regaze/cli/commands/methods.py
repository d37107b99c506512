"""`regaze methods`: the values of --method and --set."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from dataclasses import MISSING, asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from regaze.cli import console, options
from regaze.interventions import registry
from regaze.interventions.facts import ATTENTION
from regaze.interventions.parameters import parameters_of

_OTHER = "Other methods"
#: What methods act on -> the parts that they edit. A method is in the first group that it has a part of.
_GROUPS: dict[str, set[str]] = {
    "Attention": {*ATTENTION, "keys"},
    "Image tokens left out": {"tokens"},
    "Hidden states": {"attention outputs", "MLP outputs"},
    "Logits, mostly by a second context": {"logits"},
    "The image, the search or the text": {"image", "prompt", "vision tower", "search", "text"},
    _OTHER: set(),
}
#: What the user has to give, in a line.
_GIVEN = {
    "fit": "regaze fit",
    "head list": "heads",
    "trained model": "a model trained for it",
    "relevance model": "a relevance model",
    "generator": "an image generator",
    "detector": "a detector",
}


def methods(
    names: Annotated[list[str] | None, typer.Argument(help="Only these methods. [all]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """List methods and controls, their parameters and sources."""
    chosen = {name: registry.method_class(name) for name in map(registry.registered_name, names or ())}
    known = registry.load_methods() if names is None else chosen
    for reason in () if names else registry.broken_methods():
        console.info(f"regaze: left out: {reason}")
    methods = {name: _describe(cls, "method") for name, cls in known.items() if name not in registry.CONTROLS}
    controls = {
        name: _describe(registry.method_class(name), "control")
        for name in (registry.list_controls() if names is None else chosen)
        if name in registry.CONTROLS
    }
    if json:
        listed = {**methods, **controls}
        console.echo(json_module.dumps(listed, indent=2, ensure_ascii=False, default=str))
    elif names:
        _print({**methods, **controls})
    else:
        _print_groups(methods, controls)


def _print_groups(methods: Mapping[str, dict[str, Any]], controls: Mapping[str, dict[str, Any]]) -> None:
    """A line per method, under what it acts on; then the controls."""
    groups: dict[str, dict[str, dict[str, Any]]] = {title: {} for title in _GROUPS}
    for name, about in methods.items():
        groups[_group(about["facts"])][name] = about
    groups["Controls: what a method has to beat (--controls)"] = dict(controls)
    width = max(map(len, [*methods, *controls]))
    out = console.stdout()
    for title, described in groups.items():
        if described:
            out.print(Text(title, "bold underline"))
            for name, about in described.items():
                needs = [_GIVEN[need] for need in (about["facts"] or {}).get("needs", ()) if need in _GIVEN]
                line = about["summary"] + (f" [needs {', '.join(needs)}]" if needs else "")
                out.print(Text.assemble((name.ljust(width), "bold"), f"  {line}"), soft_wrap=True)
            out.print()
    console.info("parameters, source and cost of one: regaze methods NAME")


def _group(facts: Mapping[str, Any] | None) -> str:
    """The title of the first group with one of the parts that a method edits."""
    edits = set() if facts is None else set(facts["edits"])
    return next((title for title, parts in _GROUPS.items() if edits & parts), _OTHER)


def _print(described: Mapping[str, dict[str, Any]]) -> None:
    out = console.stdout()
    for name, about in described.items():
        out.print(Text.assemble((name, "bold"), f"  {about['summary']}"), soft_wrap=True)
        out.print(f"  source: {about['source']}", soft_wrap=True)
        if (facts := about["facts"]) is not None:
            needs = f"; needs: {', '.join(facts['needs'])}" if facts["needs"] else ""
            out.print(f"  edits: {', '.join(facts['edits'])}; cost: {facts['cost']}{needs}", soft_wrap=True)
        for parameter, entry in about["parameters"].items():
            default = entry.get("default", "...")
            out.print(f"  --set {parameter}={default}  ({entry['type']})", soft_wrap=True)
            out.print(f"      {entry['help']}", soft_wrap=True)
        out.print()


def _describe(cls: Any, kind: str) -> dict[str, Any]:
    parameters = {}
    for parameter in parameters_of(cls):
        default = {} if parameter.default is MISSING else {"default": parameter.default}
        parameters[parameter.name] = {"type": parameter.allowed, "help": parameter.help, **default}
    facts = None if cls.facts is None else asdict(cls.facts)
    about = {"kind": kind, "summary": str(cls.summary), "source": str(cls.source), "facts": facts}
    return {**about, "parameters": parameters}
