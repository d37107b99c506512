"""`regaze heads`: find the heads that copy from a long context."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from regaze import cli
from regaze.cli import groups, options
from regaze.errors import InputError
from regaze.names import known_name
from regaze.writing import make_folder

_SCORES = ("paper", "released")


def heads(
    model: options.ModelName,
    *,
    haystack: Annotated[
        list[Path],
        typer.Option(help="A long text (UTF-8, may be gzipped); repeatable, for the needles in turn."),
    ],
    needles: Annotated[
        Path | None,
        typer.Option(help='JSON list of {"text", "question", "answer", "cue"}. [three built-in ones]'),
    ] = None,
    lengths: Annotated[
        str, typer.Option(help="Lengths of the whole prompt in tokens.")
    ] = "500,1000,2000,4000",
    depths: Annotated[
        str, typer.Option(help="Depths of the needle: percent of the text before it.")
    ] = "10,30,50,70,90",
    score: Annotated[
        str,
        typer.Option(
            help="Score in table and picture: paper (share of the needle) or released (number of steps)."
        ),
    ] = "paper",
    top: Annotated[int, typer.Option(min=0, help="Number of heads to list.")] = 10,
    max_new_tokens: options.MaxNewTokens = 50,
    loading: groups.LoadingOptions,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; an unfinished run in it is continued. [out/heads-...]"),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the head file's path and means as JSON.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Find the retrieval heads of a model.

    Writes a head file and a picture of all heads, and prints a table of the best.
    """
    score = known_name(score, _SCORES)
    if score not in _SCORES:
        raise InputError(f"--score {score}: expected paper or released")
    sizes = options.parse_numbers("--lengths", lengths, int)
    percents = options.parse_numbers("--depths", depths, float)
    chosen_needles = cli.head_search.read_needles(needles)
    texts = cli.head_search.read_haystacks(haystack)
    folder = output or Path("out") / f"heads-{Path(model).name}"
    cli.head_search.check_folder(folder)
    cli.interrupt.current.advice = f"; the trials so far are in {folder}, and the same command continues"
    gaze = cli.models.load_named(model, loading)
    make_folder(folder)
    with cli.console.progress() as progress:
        found = cli.head_search.find_retrieval_heads(
            gaze.model,
            gaze.processor,
            texts,
            chosen_needles,
            sizes,
            percents,
            max_new_tokens=max_new_tokens,
            name=Path(model).name,
            log=folder / cli.head_search.TRIALS,
            progress=progress,
        )
    cli.head_search.write(found, folder, score, top)
    if json:
        cli.console.echo(json_module.dumps(cli.head_search.summary(found, folder)))
    else:
        cli.head_search.show(found, score, top)
    cli.console.done(f"head files and picture are in {folder}")
