"""`regaze evaluate`: benchmarks with the plain and with the edited model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze.cli import console, failure_pages, options, tables
from regaze.cli.config import option_values
from regaze.cli.generation import generation_options
from regaze.cli.methods import read_method
from regaze.cli.questions import QuestionSource, make_tasks
from regaze.cli.run import AddPages, Run, execute, output_folder
from regaze.eval import EvalConfig
from regaze.eval.report.sections import Link
from regaze.eval.run.results import dumps
from regaze.toolkit import Gaze


def evaluate(
    ctx: typer.Context,
    benchmark: options.Benchmarks,
    model: options.Model = "demo",
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
    html: Annotated[
        int, typer.Option(min=0, help="Also write interactive pages of this many wrongly answered questions.")
    ] = 0,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare the plain and the edited model on benchmarks.

    A run that was stopped continues when it is started again with the same --output: no question is
    answered twice. `accelerate launch -m regaze evaluate ...` shares the work between processes.
    """
    chosen = read_method(method, settings)
    source = QuestionSource(data, images, questions, split, bench, limit, suffix)
    generation = generation_options(generate, max_new_tokens)
    run = Run(
        tasks=make_tasks(benchmark, source, generation, judge, model),
        methods={} if chosen is None else {method: chosen},
        config=EvalConfig(batch_size, seed, max_errors, share_prefix, raise_method_errors=True),
        model=model,
        device=device,
        dtype=dtype,
        folder=output_folder(output, resume, f"{benchmark.replace(',', '-')}-{method}", model),
        export=export,
        options=option_values(ctx),
    )
    results, folder = execute(run, _failure_pages(run, html) if html else None)
    if results is None:
        return
    if json:
        typer.echo(dumps(results))
    else:
        tables.show(results)
    console.info(f"results, answers and report are in {folder}")


def _failure_pages(run: Run, count: int) -> AddPages:
    def add(gaze: Gaze, folder: Path) -> list[Link]:
        index = failure_pages.write(gaze, run.tasks, run.methods, folder, count)
        if index is None:
            console.info("no question was answered wrongly")
            return []
        console.info(f"pages of wrongly answered questions are in {index}")
        return [("Wrongly answered questions, to explore", index.name)]

    return add
