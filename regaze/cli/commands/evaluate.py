"""`regaze evaluate`: benchmarks with the plain and with the edited model."""

from __future__ import annotations

from typing import Annotated

import typer

from regaze import cli
from regaze.cli import options
from regaze.cli.config import option_values


def evaluate(
    ctx: typer.Context,
    benchmark: options.Benchmarks,
    model: options.Model = "demo",
    model_arg: options.ModelArg = None,
    template_arg: options.TemplateArg = None,
    method: options.Method = "none",
    settings: options.Settings = None,
    config: options.Config = None,
    data: options.Data = None,
    images: options.Images = None,
    questions: options.Questions = None,
    split: options.Split = None,
    bench: options.Bench = None,
    limit: options.Limit = None,
    suffix: Annotated[
        str | None,
        typer.Option(help="Text after each question; \\n is a new line. [as the benchmark defines]"),
    ] = None,
    few_shot: options.FewShot = None,
    allow_urls: options.AllowUrls = False,
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
    html: Annotated[
        int, typer.Option(min=0, help="Also write interactive pages of this many wrongly answered questions.")
    ] = 0,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare the plain and the edited model on benchmarks.

    A run that was stopped continues when the same command is given again: no question is answered twice.
    `accelerate launch -m regaze evaluate ...` shares the work between processes.
    """
    chosen = cli.methods.read_method(method, settings)
    source = cli.questions.QuestionSource(
        data, images, questions, split, bench, limit, suffix, few_shot, allow_urls
    )
    generation = cli.generation.generation_options(generate, max_new_tokens)
    run = cli.run.Run(
        tasks=cli.questions.make_tasks(benchmark, source, generation, judge, model, device, model_arg),
        methods={} if chosen is None else {chosen.name: chosen},
        config=cli.run.eval_config(ctx, raise_method_errors=True),
        name=f"{benchmark.replace(',', '-')}-{chosen.name if chosen else 'none'}",
        formats=cli.run.parse_formats(export or ""),
        options=option_values(ctx),
    )
    pages = cli.failure_pages.writer(run.tasks, run.methods, html, thinking_tokens)
    results, folder = cli.run.execute(run, pages)
    if results is None:
        return
    if json:
        cli.console.echo(cli.tables.as_json(results))
    else:
        cli.tables.show(results)
    cli.console.done(f"results, answers and report are in {folder}")
