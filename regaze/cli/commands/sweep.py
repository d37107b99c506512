"""`regaze sweep`: figures against a parameter of a method."""

from __future__ import annotations

from typing import Annotated

import typer

from regaze import cli
from regaze.cli import groups, options
from regaze.errors import BadParameterError


def sweep(
    ctx: typer.Context,
    benchmark: options.Benchmarks,
    *,
    method: options.Method,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="Values of a parameter, as in alpha=0,1,2,4; repeatable: of several parameters all "
            "combinations are tried, and drawn against the first.",
        ),
    ] = None,
    settings: options.Settings = None,
    run: groups.RunOptions,
) -> None:
    """Draw figures against a parameter of a method.

    The curves of the tested figure, the length of the answers, recall and yes-ratio, where the benchmark has
    them, with 95 % intervals and the plain model as a line, are in the folder as SVG and PNG (plots/). The
    best value of a sweep was chosen on the questions it is shown on: to report one, `regaze compare --tune`.
    """
    chosen = cli.methods.read_method(method, settings, varied=True)
    if chosen is None:
        raise BadParameterError("--method none: there is no parameter to vary; name a method")
    prepared = cli.run.prepare(
        ctx,
        run,
        benchmark,
        {chosen.name: chosen},
        name=f"sweep-{benchmark.replace(',', '-')}-{chosen.name}",
        raise_method_errors=False,
        grid=cli.grids.read_grid(grid or [], chosen),
    )
    results, folder = cli.run.execute(prepared)
    if results is None:
        return
    cli.tables.show_page(results, cli.tables.swept, run.json)
    cli.console.done(f"the curves (plots/), the report and all figures are in {folder}")
