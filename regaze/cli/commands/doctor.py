"""`regaze doctor`: what works here, and what to install for the rest."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from typing import Annotated

import typer

from regaze import cli
from regaze.cli import options


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """Say what works here, and what to install for the rest.

    Exit code 1 where something is broken without which nothing works; an optional part that is missing is
    no failure.
    """
    cli.models.quiet_libraries()
    findings = []
    for finding in cli.diagnosis.examine():
        findings.append(finding)
        if not json:
            cli.console.echo(f"{finding.state:<8} {finding.part}: {finding.found}")
            if finding.advice:
                cli.console.echo(f"{'':<8} -> {finding.advice}")
    if json:
        described = [{"state": finding.state, **asdict(finding)} for finding in findings]
        cli.console.echo(json_module.dumps(described, indent=2))
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
