"""`regaze view`: a page on which to explore where the model looked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from regaze.cli import console, options
from regaze.cli.heatmap import check_output, find_image, numbers


def view(
    image: Annotated[
        str,
        typer.Argument(help="An image file, or the name of a shipped scene; several with commas; or none."),
    ],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: options.Model = "demo",
    method: options.Method = "none",
    settings: options.Settings = None,
    layers: Annotated[str | None, typer.Option(help="Layers on the page, such as 3 or 2,3. [all]")] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens at the prompt's end that can be chosen. [the question, at most 64]"),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 32,
    max_size: Annotated[
        float, typer.Option(min=0.1, help="Largest page in MB; beyond it the weakest weights are left out.")
    ] = 8.0,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write, .html.")] = Path("view.html"),
    debug: options.Debug = False,
) -> None:
    """Write a page to explore where the model looked, plain and edited; prints the answer."""
    images = find_images(image)
    check_output(output, (".html", ".htm"))
    chosen_layers = numbers("--layers", layers)
    intervention = options.method(method, settings)
    gaze = options.load(model, device, dtype)
    import torch

    from regaze.toolkit.viewer import answer_page

    torch.manual_seed(seed)
    active: list[Any] = [intervention] if intervention else []
    page = answer_page(
        gaze,
        images,
        question,
        *active,
        layers=chosen_layers,
        rows=rows,
        max_new_tokens=max_new_tokens,
        model=model if not os.path.isdir(model) else Path(model).name,
        limit=int(max_size * 1e6),
    )
    page.save(output)
    typer.echo(page.variants[-1].answer)
    console.say(f"the page is in {output}")


def find_images(names: str) -> list[Path]:
    """The images of the argument: none, one, or several with commas (of a name that is no file itself)."""
    if names == "none":
        return []
    if os.path.exists(names):
        return [Path(names)]
    return [find_image(name.strip()) for name in names.split(",")]
