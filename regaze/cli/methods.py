"""`regaze methods`: what can be given to --method and --set."""

from __future__ import annotations

import json as json_module
from dataclasses import MISSING
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
    from regaze.interventions.parameters import parameters_of

    parameters = {}
    for each in parameters_of(cls):
        default = {} if each.default is MISSING else {"default": each.default}
        parameters[each.name] = {"type": each.allowed, "help": each.help, **default}
    return {"summary": cls.summary, "source": cls.source, "parameters": parameters}
