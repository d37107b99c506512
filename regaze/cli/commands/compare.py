"""`regaze compare`: several methods on the same questions, in one table."""

from __future__ import annotations

from typing import Annotated

import typer

from regaze import cli
from regaze.cli import options
from regaze.cli.config import option_values


def compare(
    ctx: typer.Context,
    benchmark: options.Benchmarks = "pope",
    named: Annotated[
        str | None, typer.Option("--benchmark", help="Another way to give the benchmark.", show_default=False)
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help='Names separated by commas, all, or a JSON or YAML file: a list of {"label", "method", '
            "parameters...}."
        ),
    ] = "all",
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Run the controls of each method, too, and say whether it beats the best of them.",
        ),
    ] = False,
    damage_check: options.DamageCheck = True,
    damage_data: options.DamageData = None,
    model: options.Model = "demo",
    model_arg: options.ModelArg = None,
    config: options.Config = None,
    data: options.Data = None,
    images: options.Images = None,
    bench: options.Bench = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 16,
    max_new_tokens: options.AnswerTokens = 16,
    generate: options.Generate = None,
    seed: options.Seed = 0,
    max_errors: options.MaxErrors = 10,
    share_prefix: options.SharePrefix = True,
    judge: options.Judge = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    output: options.Output = None,
    resume: options.Resume = False,
    export: options.Export = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare several methods on the same questions.

    Each method is compared with the plain model. A method that cannot run on the model becomes a line with
    the reason; the others still run.
    """
    benchmark = named or benchmark
    chosen = cli.methods.read_methods(methods)
    source = cli.questions.QuestionSource(data=data, images=images, bench=bench, limit=limit)
    generation = cli.generation.generation_options(generate, max_new_tokens)
    tasks = cli.questions.make_tasks(benchmark, source, generation, judge, model, device, model_arg)
    run = cli.run.Run(
        tasks=tasks,
        methods=chosen,
        config=cli.run.EvalConfig(batch_size, seed, max_errors, share_prefix, raise_method_errors=False),
        name=f"compare-{benchmark.replace(',', '-')}",
        formats=cli.run.parse_formats(export or ""),
        options={**option_values(ctx), "benchmark": benchmark},
        controls=controls,
        damage_check=cli.damage.find_task(tasks, model, damage_data, limit) if damage_check else None,
    )
    results, folder = cli.run.execute(run)
    if results is None:
        return
    cli.console.echo(cli.tables.as_json(results) if json else cli.tables.comparison(results))
    cli.console.done(f"the report, all figures and the answers are in {folder}")
