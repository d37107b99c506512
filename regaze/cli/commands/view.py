"""`regaze view`: an interactive page of where the model looked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from regaze import cli, toolkit
from regaze.cli import groups, options
from regaze.writing import make_folder


def view(
    image: Annotated[
        str,
        typer.Argument(
            help="An image file, or the name of a shipped scene; several separated by commas; or none."
        ),
    ],
    question: Annotated[str, typer.Argument(help="The question about it.")],
    *,
    model: groups.ModelOptions,
    method: options.Method = "none",
    settings: options.Settings = None,
    layers: Annotated[str | None, typer.Option(help="Layers on the page, such as 3 or 0,2-4. [all]")] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Selectable tokens at the prompt's end. [the question, at most 64]"),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 32,
    max_size: Annotated[
        float,
        typer.Option(min=0.1, help="Largest page in MB; the weakest weights are left out to fit it."),
    ] = 8.0,
    seed: options.Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write, .html.")] = Path("view.html"),
    allow_urls: options.AllowUrls = False,
    debug: options.Debug = False,
) -> None:
    """Write an interactive page of where the model looked.

    Prints the answer. With --method the page shows the plain and the edited model.
    """
    images = cli.pictures.find_images(image, allow_urls)
    cli.pictures.check_output(output, (".html", ".htm"))
    layer_indices = options.parse_indices("--layers", layers)
    chosen = cli.methods.read_method(method, settings)
    gaze = cli.models.load_chosen(model, seed)
    active: list[Any] = [chosen] if chosen else []
    page = toolkit.viewer.answer_page(
        gaze,
        images,
        question,
        *active,
        layers=layer_indices,
        rows=rows,
        max_new_tokens=max_new_tokens,
        model=Path(model.model).name if os.path.isdir(model.model) else model.model,
        limit=int(max_size * 1e6),
    )
    make_folder(output.parent)
    page.save(output)
    cli.console.echo(page.variants[-1].answer or "")
    cli.console.done(f"the page is in {output}")
