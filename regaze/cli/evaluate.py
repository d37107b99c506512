"""`regaze evaluate`: a benchmark, plain against edited."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from regaze.cli import console, options, tables
from regaze.errors import InputError


def evaluate(
    benchmark: Annotated[str, typer.Argument(help="What to run: pope.")],
    model: options.Model = "demo",
    method: options.Method = "none",
    settings: options.Settings = None,
    split: Annotated[
        str | None, typer.Option(help="random, popular, adversarial or all, of the shipped scenes. [all]")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Questions in POPE's own format, instead of the shipped ones.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images that --questions names.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions of each split.")] = None,
    batch_size: Annotated[int, typer.Option(help="Questions answered at a time.")] = 16,
    suffix: Annotated[
        str | None,
        typer.Option(help="Appended to each question; \\n is a new line. [LLaVA's short-answer line]"),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 16,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for results.json and answers.jsonl. [out/... with the time]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print results.json and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """Compare the plain and the edited model on a benchmark."""
    if benchmark != "pope":
        raise InputError(f"unknown benchmark {benchmark!r}; there is pope")
    intervention = options.method(method, settings)
    task = pope(questions, images, split, limit, suffix)
    gaze = options.load(model, device, dtype)
    folder = output or Path("out") / f"pope-{Path(model).name}-{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    results = run(
        gaze,
        task,
        intervention,
        folder,
        model=model,
        batch_size=batch_size,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    if json:
        from regaze.eval.results import dumps

        typer.echo(dumps(results))
    else:
        tables.show(results)
    console.say(f"results and answers are in {folder}")


def pope(
    questions: Path | None, images: Path | None, split: str | None, limit: int | None, suffix: str | None
) -> Any:
    """The POPE questions asked for: a file's, or those of the shipped scenes."""
    from regaze import demo
    from regaze.eval.benchmarks.pope import SPLITS, SUFFIX, Pope

    if (questions is None) != (images is None):
        raise InputError("--questions FILE and --images DIR belong together; give both or neither")
    if questions is not None and images is not None:
        if split is not None:
            raise InputError("--split chooses among the shipped questions; leave it out with --questions")
        files, folder = {questions.stem: questions}, images
    else:
        wanted = split or "all"
        if wanted not in (*SPLITS, "all"):
            raise InputError(f"unknown split {wanted!r}; there are {', '.join(SPLITS)} and all")
        chosen = SPLITS if wanted == "all" else (wanted,)
        files, folder = {name: Path(demo.questions_file(name)) for name in chosen}, Path(demo.IMAGE_DIR)
    text = SUFFIX if suffix is None else suffix.replace("\\n", "\n")
    return Pope(files, folder, suffix=text, limit=limit)


def run(
    gaze: Any, task: Any, intervention: Any, folder: Path, *, model: str, **kwargs: Any
) -> dict[str, Any]:
    """Run with progress bars."""
    from regaze.eval import run as run_benchmark

    with console.progress() as report:
        return run_benchmark(gaze, task, intervention, folder, model_name=model, progress=report, **kwargs)
