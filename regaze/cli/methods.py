"""`regaze methods`: what can be given to --method and --set."""

from __future__ import annotations

import dataclasses
import json as json_module
from typing import Annotated, Any

import typer
from rich.markup import escape

from regaze.cli import console, options


def methods(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """List interventions, parameters and sources."""
    from regaze.interventions import registry

    known = {name: _describe(cls) for name, cls in registry.load_methods().items()}
    for reason in registry.broken_methods():
        console.say(f"regaze: left out: {reason}")
    if json:
        typer.echo(json_module.dumps(known, indent=2, ensure_ascii=False))
        return
    out = console.stdout()
    for name, about in known.items():
        out.print(f"[bold]{name}[/bold]  {escape(about['summary'])}", soft_wrap=True)
        out.print(f"  source: {about['source']}", markup=False, soft_wrap=True)
        for parameter, entry in about["parameters"].items():
            default = f" = {entry['default']}" if "default" in entry else "  (required)"
            out.print(f"  --set {parameter}: {entry['type']}{default}", markup=False, soft_wrap=True)
            out.print(f"      {entry['help']}", markup=False, soft_wrap=True)
        out.print()


def _describe(cls: Any) -> dict[str, Any]:
    return {
        "summary": cls.summary,
        "source": cls.source,
        "parameters": {field.name: _parameter(field) for field in dataclasses.fields(cls) if field.init},
    }


def _parameter(field: dataclasses.Field[Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": str(field.type), "help": field.metadata.get("help", "")}
    if field.default is not dataclasses.MISSING:
        entry["default"] = field.default
    elif field.default_factory is not dataclasses.MISSING:
        entry["default"] = field.default_factory()
    return entry
