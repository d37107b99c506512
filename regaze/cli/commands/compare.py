"""`regaze compare`: several methods on the same questions, in one table."""

from __future__ import annotations

from typing import Annotated

import typer

from regaze import cli
from regaze.cli import groups, options


def compare(
    ctx: typer.Context,
    benchmark: options.Benchmarks = "pope",
    *,
    named: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            callback=options.spelt_benchmarks,
            help="Another way to give the benchmark.",
            show_default=False,
        ),
    ] = None,
    methods: options.Methods = None,
    settings: options.Settings = None,
    controls: options.Controls = False,
    damage_check: options.DamageCheck = True,
    damage_data: options.DamageData = None,
    tuned: groups.TuningOptions,
    run: groups.RunOptions,
    html: options.Html = 0,
) -> None:
    """Compare several methods on the same questions.

    Each is compared with the plain model; one that cannot run becomes a line with the reason. With --tune,
    parameters are chosen on some images (of the first benchmark), and compared on the others.
    """
    benchmark = named or benchmark
    if methods is None:
        methods = cli.grids.tuned_names(tuned.tune) if tuned.tune else "all"
    prepared = cli.run.prepare(
        ctx,
        run,
        benchmark,
        cli.methods.read_methods(methods, settings),
        name=f"compare-{benchmark.replace(',', '-')}",
        raise_method_errors=False,
        tuned=tuned,
        controls=controls,
        damage_check=damage_check,
        damage_data=damage_data,
        values={"benchmark": benchmark, "methods": methods},
    )
    pages = cli.failure_pages.writer(prepared.tasks, prepared.methods, html, run.thinking_tokens)
    results, folder = cli.run.execute(prepared, pages)
    if results is not None:
        cli.tables.show_page(results, cli.tables.comparison, run.json)
        cli.console.done(f"the report, all figures and the answers are in {folder}")
