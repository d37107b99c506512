"""`regaze objects`: boxes and masks of objects, from the model's attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze import cli
from regaze.cli import groups, options


def objects(
    image: Annotated[str, typer.Argument(help="An image file, or the name of a shipped scene.")],
    *,
    words: Annotated[
        str | None,
        typer.Option(help="Objects to look for, separated by commas. [those that the model names]"),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(help="What to ask; {} stands for each word; repeatable. [one about the word or image]"),
    ] = None,
    model: groups.ModelOptions,
    segmenter: Annotated[
        str | None,
        typer.Option(
            help="A SAM or SAM 2 for masks, such as facebook/sam-vit-base. [regions of the map itself]"
        ),
    ] = None,
    maps: Annotated[
        str, typer.Option("--map", help="flow (VL-SAM's), relevance (gradients) or rollout.")
    ] = "flow",
    scales: Annotated[
        str, typer.Option(help="Shares of the image's sides, below 1 as four corner crops, such as 1,0.6.")
    ] = "1",
    threshold: Annotated[float, typer.Option(help="Share of a map's top where an object ends.")] = 0.5,
    instances: Annotated[int, typer.Option(min=1, help="At most so many of a word in a map.")] = 1,
    max_new_tokens: options.MaxNewTokens = 64,
    output: Annotated[Path, typer.Option(help="Picture to write: .png, .pdf or .svg.")] = Path("objects.png"),
    allow_urls: options.AllowUrls = False,
    debug: options.Debug = False,
) -> None:
    """Find objects by where the model looks at their names.

    Prints a line for each: score, box in pixels (left, upper, right, lower), word. Every word has a box, also
    one that is not in the image.
    """
    path = cli.pictures.find_image(image, allow_urls)
    cli.pictures.check_output(output, (".png", ".pdf", ".svg"))
    names = None if words is None else [word for word in map(str.strip, words.split(",")) if word]
    shares = options.parse_numbers("--scales", scales, float)
    gaze = cli.models.load_chosen(model)
    found = cli.pictures.draw_objects(
        gaze,
        path,
        names,
        output,
        segmenter=segmenter,
        maps=maps,
        questions=question or None,
        scales=shares,
        threshold=threshold,
        instances=instances,
        max_new_tokens=max_new_tokens,
    )
    for each in found:
        box = " ".join(f"{edge:5.0f}" for edge in each.box)
        cli.console.echo(f"{each.score:.2f}  {box}  {each.word}")
    cli.console.done(f"{len(found)} objects are in {output}")
