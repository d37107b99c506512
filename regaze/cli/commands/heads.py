"""`regaze heads`: find the heads that copy from a long context."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from regaze.cli import console, models, options
from regaze.errors import InputError, RegazeError
from regaze.interventions.retrieval_heads import (
    NEEDLES,
    Needle,
    RetrievalHeads,
    find_retrieval_heads,
    read_haystack,
)
from regaze.reading import parse_json, read_text
from regaze.toolkit import plot

#: The paper's thresholds of retrieval heads and of strong ones.
THRESHOLDS = (0.1, 0.5)


def heads(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the Hugging Face hub.")],
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
    device: options.Device = None,
    dtype: options.Dtype = None,
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
    if score not in ("paper", "released"):
        raise InputError(f"--score {score}: expected paper or released")
    sizes = options.parse_numbers("--lengths", lengths, int)
    percents = options.parse_numbers("--depths", depths, float)
    chosen_needles = read_needles(needles)
    texts = [read_haystack(path) for path in haystack]
    folder = output or Path("out") / f"heads-{Path(model).name}"
    gaze = models.load_model(model, device, dtype)
    with console.progress() as progress:
        found = find_retrieval_heads(
            gaze.model,
            gaze.processor,
            texts,
            chosen_needles,
            sizes,
            percents,
            max_new_tokens=max_new_tokens,
            name=Path(model).name,
            log=folder / "trials.jsonl",
            progress=progress,
        )
    _write(found, folder, score, top)
    if json:
        typer.echo(json_module.dumps(_summary(found, folder)))
    else:
        show(found, score, top)
    console.info(f"head files and picture are in {folder}")


def read_needles(path: Path | None) -> list[Needle]:
    """Needles from a JSON file, the built-in ones for None. Raises InputError: a file without needles."""
    if path is None:
        return list(NEEDLES)
    entries = parse_json(read_text(path, "--needles "), f"--needles {path}")
    try:
        return [Needle(**entry) for entry in entries]
    except RegazeError as error:
        raise InputError(f"--needles {path}: {error}") from error
    except TypeError as error:
        example = asdict(NEEDLES[0])
        raise InputError(
            f"--needles {path}: {error}; expected a list of objects such as {json_module.dumps(example)}"
        ) from error


def show(found: RetrievalHeads, score: Any, top: int) -> None:
    """Print the number of retrieval heads, and a table of the best."""
    out, mean, about = console.stdout(), found.mean(score), found.about
    out.print(
        f"{about['model']}: {about['trials_succeeded']} of {about['trials_run']} trials succeeded; "
        f"{mean.numel()} heads",
        markup=False,
        soft_wrap=True,
    )
    for threshold in THRESHOLDS:
        count = int((mean >= threshold).sum())
        out.print(f"  score at least {threshold}: {count} ({count / mean.numel():.1%})", markup=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("layer", "head", "paper score", "released score", "active in"):
        table.add_column(heading, justify="right")
    paper, released, frequency = found.mean("paper"), found.mean("released"), found.frequency()
    for head in found.top(min(top, mean.numel()), score):
        figures = (f"{paper[head]:.3f}", f"{released[head]:.3f}", f"{frequency[head]:.0%}")
        table.add_row(*map(str, head), *figures)
    out.print(table)


def _write(found: RetrievalHeads, folder: Path, score: Any, top: int) -> None:
    found.save(folder / "heads.json")
    found.save_released(folder / "heads_released.json")
    plot.head_scores(
        found.mean(score),
        marked=found.top(min(top, found.mean(score).numel()), score),
        label=f"retrieval score ({score})",
        title=str(found.about["model"]),
        path=folder / "heads.png",
    )


def _summary(found: RetrievalHeads, folder: Path) -> dict[str, Any]:
    keep = ("model", "trials_run", "trials_succeeded")
    return {
        **{key: found.about[key] for key in keep},
        "file": str(folder / "heads.json"),
        "paper": found.mean("paper").tolist(),
        "released": found.mean("released").tolist(),
        "frequency": found.frequency().tolist(),
    }
