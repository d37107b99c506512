"""`regaze audit`: whether methods do more than their own controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze import cli
from regaze.cli import options


def audit(
    *,
    plan: Annotated[
        str | None,
        typer.Option(help="quick, demo, bed, or a YAML or JSON file that says what is asked. [demo]"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The plan quick: minutes of a CPU.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Audit this model, and not those of the plan: demo, bed, a folder, or a hub id."),
    ] = None,
    training: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="Another training of the bed, to see which verdicts hold for all of them; repeatable.",
        ),
    ] = None,
    model_arg: options.ModelArg = None,
    data: options.Data = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for results; an audit in it is continued. [out/audit-PLAN]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print audit.json and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """Say which methods do more than their own controls.

    Strengths are chosen on one half of the scenes, as many trials for each method, and tested with the
    controls on the other. Verdicts follow from fixed rules. An audit that was stopped continues when the same
    command is given again.
    """
    chosen = cli.auditing.read_plan(plan, quick, model, model_arg, data)
    chosen = chosen.with_trainings(training) if training else chosen
    results, folder = cli.auditing.run(chosen, output, device, dtype)
    if json:
        cli.console.echo(cli.auditing.as_json(results))
    else:
        cli.auditing.show(results)
    cli.console.done(f"the page (audit.html), audit.json and the answers are in {folder}")
