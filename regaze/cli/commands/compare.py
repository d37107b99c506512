"""`regaze compare`: several methods on the same questions, in one table."""

from __future__ import annotations

from typing import Annotated

import typer

from regaze.cli import console, options, tables
from regaze.cli.config import option_values
from regaze.cli.generation import generation_options
from regaze.cli.methods import read_methods
from regaze.cli.questions import QuestionSource, make_tasks
from regaze.cli.run import Run, execute, output_folder
from regaze.eval import EvalConfig
from regaze.eval.run.results import dumps


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
    model: options.Model = "demo",
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
    chosen = read_methods(methods)
    source = QuestionSource(data=data, images=images, bench=bench, limit=limit)
    generation = generation_options(generate, max_new_tokens)
    run = Run(
        tasks=make_tasks(benchmark, source, generation, judge, model),
        methods=chosen,
        config=EvalConfig(batch_size, seed, max_errors, share_prefix, raise_method_errors=False),
        model=model,
        device=device,
        dtype=dtype,
        folder=output_folder(output, resume, f"compare-{benchmark.replace(',', '-')}", model),
        export=export,
        options={**option_values(ctx), "benchmark": benchmark},
    )
    results, folder = execute(run)
    if results is None:
        return
    typer.echo(dumps(results) if json else tables.comparison(results))
    console.info(f"the report, all figures and the answers are in {folder}")
