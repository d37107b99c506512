"""`regaze sweep`: figures against a parameter of a method."""

from __future__ import annotations

from typing import Annotated

import typer

from regaze import cli
from regaze.cli import options
from regaze.cli.config import option_values
from regaze.errors import BadParameterError


def sweep(
    ctx: typer.Context,
    benchmark: options.Benchmarks,
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
    model: options.Model = "demo",
    model_arg: options.ModelArg = None,
    template_arg: options.TemplateArg = None,
    config: options.Config = None,
    data: options.Data = None,
    images: options.Images = None,
    questions: options.Questions = None,
    split: options.Split = None,
    bench: options.Bench = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 16,
    max_new_tokens: options.AnswerTokens = 16,
    thinking_tokens: options.ThinkingTokens = 0,
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
    """Draw figures against a parameter of a method.

    The curves of the tested figure, the length of the answers, recall and yes-ratio, where the benchmark has
    them, with 95 % intervals and the plain model as a line, are in the folder as SVG and PNG (plots/). The
    best value of a sweep was chosen on the questions it is shown on: to report one, `regaze compare --tune`.
    """
    chosen = cli.methods.read_method(method, settings)
    if chosen is None:
        raise BadParameterError("--method none: there is no parameter to vary; name a method")
    values = cli.grids.read_grid(grid or [], chosen)
    source = cli.questions.QuestionSource(data, images, questions, split, bench, limit)
    generation = cli.generation.generation_options(generate, max_new_tokens)
    run = cli.run.Run(
        tasks=cli.questions.make_tasks(benchmark, source, generation, judge, model, device, model_arg),
        methods={chosen.name: chosen},
        config=cli.run.eval_config(ctx, raise_method_errors=False),
        name=f"sweep-{benchmark.replace(',', '-')}-{chosen.name}",
        formats=cli.run.parse_formats(export or ""),
        options=option_values(ctx),
        grid=values,
    )
    results, folder = cli.run.execute(run)
    if results is None:
        return
    cli.tables.show_page(results, cli.tables.swept, json)
    cli.console.done(f"the curves (plots/), the report and all figures are in {folder}")
