"""`regaze evaluate`: benchmarks with the plain and with the edited model."""

from __future__ import annotations

import typer

from regaze import cli
from regaze.cli import groups, options


def evaluate(
    ctx: typer.Context,
    benchmark: options.Benchmarks,
    *,
    method: options.Method = "none",
    settings: options.Settings = None,
    controls: options.Controls = False,
    damage_check: options.DamageCheck = False,
    damage_data: options.DamageData = None,
    tuned: groups.TuningOptions,
    run: groups.RunOptions,
    html: options.Html = 0,
) -> None:
    """Compare the plain and the edited model on benchmarks.

    A run that was stopped continues when the same command is given again: no question is answered twice.
    `accelerate launch -m regaze evaluate ...` shares the work between processes.
    """
    chosen = cli.methods.read_method(method, settings)
    prepared = cli.run.prepare(
        ctx,
        run,
        benchmark,
        {} if chosen is None else {chosen.name: chosen},
        name=f"{benchmark.replace(',', '-')}-{chosen.name if chosen else 'none'}",
        raise_method_errors=True,
        tuned=tuned,
        controls=controls,
        damage_check=damage_check,
        damage_data=damage_data,
    )
    pages = cli.failure_pages.writer(prepared.tasks, prepared.methods, html, run.thinking_tokens)
    results, folder = cli.run.execute(prepared, pages)
    if results is None:
        return
    if run.json:
        cli.console.echo(cli.tables.as_json(results))
    else:
        cli.tables.show(results)
    cli.console.done(f"results, answers and report are in {folder}")
