"""`regaze fit`: fit the directions that a method needs on a model."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from regaze import cli
from regaze.cli import groups, options
from regaze.interventions import registry


def fit(
    method: Annotated[
        str,
        typer.Argument(callback=registry.registered_name, help="A method that is fitted, such as vti."),
    ],
    *,
    model: groups.ModelOptions,
    data: Annotated[
        str | None,
        typer.Option(
            help='JSON lines: of vti, nullu {"image", "value", "h_value"}, a true and an invented caption; '
            'of ict {"image", "text", "label"}, a question; or demo. [demo for the demo model]'
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images. [that of the data file]")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the fit; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. [out/METHOD-MODEL.safetensors]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the file's header as JSON.")] = False,
    debug: options.Debug = False,
) -> None:
    """Fit the directions that a method needs on a model.

    They are fitted once; `--method METHOD --set directions=FILE` of other commands uses them. An interrupted
    fit is continued by the same command.
    """
    fit = cli.fitting.read_fit(method, settings)
    pairs = cli.fitting.read_data(fit, data, images, model.model)
    path = output or Path("out") / f"{method}-{Path(model.model).name}.safetensors"
    parts = cli.fitting.check_output(path)
    cli.interrupt.current.advice = f"; what is measured so far is in {parts}, and the same command continues"
    gaze = cli.models.load_chosen(model)
    found = cli.fitting.result_at(path, fit, gaze, pairs)
    if found is None:
        with cli.console.progress() as progress:
            found = fit.run(gaze, pairs, parts=parts, progress=progress)
        cli.fitting.save(found, path, parts)
    if json:
        cli.console.echo(json_module.dumps(found.about))
    else:
        cli.fitting.show(found)
    cli.console.done(f"use it with --method {method} --set directions={path}")
