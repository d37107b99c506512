"""`regaze evaluate`: benchmarks, plain against edited."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regaze.cli import console, options, pages, running, tables

if TYPE_CHECKING:
    from regaze import Gaze


def evaluate(
    ctx: typer.Context,
    benchmark: Annotated[
        str, typer.Argument(help="What to run, with commas between; `regaze benchmarks` lists them.")
    ],
    model: options.Model = "demo",
    method: options.Method = "none",
    settings: options.Settings = None,
    config: running.Config = None,
    data: running.Data = None,
    images: running.Images = None,
    questions: Annotated[
        Path | None, typer.Option(help="pope: a file of questions in its own format, with --images.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="pope: random, popular, adversarial or all, of the shipped scenes. [all]"),
    ] = None,
    bench: running.Bench = None,
    limit: running.Limit = None,
    suffix: Annotated[
        str | None,
        typer.Option(
            help="Appended to each question; \\n is a new line. [what the benchmark's protocol has]"
        ),
    ] = None,
    batch_size: running.BatchSize = 16,
    max_new_tokens: running.LongestAnswer = 16,
    generate: running.Generate = None,
    seed: options.Seed = 0,
    max_errors: running.MaxErrors = 10,
    share_prefix: running.SharePrefix = True,
    judge: running.Judge = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    output: running.Output = None,
    resume: running.Resume = False,
    export: running.Export = None,
    html: Annotated[
        int, typer.Option(min=0, help="Also write pages to explore, of so many questions that went wrong.")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print results.json and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """Compare the plain and the edited model on benchmarks.

    A run that was stopped goes on when it is started again with the same --output: no question is asked
    twice. `accelerate launch -m regaze evaluate ...` shares the work between processes.
    """
    chosen = options.method(method, settings)
    request = running.Request(
        running.tasks(ctx.params),
        {} if chosen is None else {method: chosen},
        f"{benchmark.replace(',', '-')}-{method}",
        running.given(ctx),
        raise_method_errors=True,
    )

    def explore(gaze: Gaze, folder: Path) -> list[tuple[str, str]]:
        index = pages.write(gaze, request.tasks, request.methods, folder, html)
        console.say("no question went wrong" if index is None else f"pages of what went wrong are in {index}")
        return [] if index is None else [("Questions that went wrong, to explore", index.name)]

    results, folder = running.execute(request, explore if html else None)
    if results is None:
        return
    if json:
        from regaze.eval.run.results import dumps

        typer.echo(dumps(results))
    else:
        tables.show(results)
    console.say(f"results, answers and report are in {folder}")
