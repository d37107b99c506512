"""`regaze heatmap`: where the model looked while it answered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from regaze import cli
from regaze.cli import groups, options
from regaze.interventions.facts import ATTENTION


def heatmap(
    image: Annotated[str, typer.Argument(help="An image file, or the name of a shipped scene.")],
    question: Annotated[str, typer.Argument(help="The question about it.")],
    *,
    model: groups.ModelOptions,
    method: options.Method = "none",
    settings: options.Settings = None,
    layers: Annotated[str | None, typer.Option(help="Layers to average, such as 3 or 0,2-4. [all]")] = None,
    heads: Annotated[str | None, typer.Option(help="Heads to average, such as 0 or 0,5. [all]")] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Whose attention to show: the number of an answer token, or a word of answer or question. "
            "[the word that the question asks about]"
        ),
    ] = None,
    views: Annotated[
        Literal["sum", "mean", "tiles", "overview", "apart"],
        typer.Option(
            help="Of an image that the model sees as tiles: the sum of all views that show a point, their "
            "mean, the tiles or the overview alone, or both apart."
        ),
    ] = "sum",
    max_new_tokens: options.MaxNewTokens = 32,
    seed: options.Seed = 0,
    output: Annotated[Path, typer.Option(help="Picture to write: .png, .pdf or .svg.")] = Path("heatmap.png"),
    allow_urls: options.AllowUrls = False,
    debug: options.Debug = False,
) -> None:
    """Draw where the model looked while it answered.

    Prints the answer. With --method the picture shows the attention as edited.
    """
    path = cli.pictures.find_image(image, allow_urls)
    cli.pictures.check_output(output, (".png", ".pdf", ".svg"))
    layer_indices, head_indices = (
        options.parse_indices("--layers", layers),
        options.parse_indices("--heads", heads),
    )
    chosen = cli.methods.read_method(method, settings)
    gaze = cli.models.load_chosen(model, seed)
    answer = cli.pictures.draw_heatmap(
        gaze,
        chosen,
        path,
        question,
        output,
        token=int(token) if token and token.isdecimal() else token,
        layers=layer_indices,
        heads=head_indices,
        views=views,
        max_new_tokens=max_new_tokens,
    )
    cli.console.echo(answer)
    edits = () if chosen is None or chosen.facts is None else chosen.facts.edits
    if edits and not set(edits) & set(ATTENTION):
        cli.console.info(f"{method} changes {', '.join(edits)} and does not edit attention")
    cli.console.done(f"the heatmap is in {output}")
