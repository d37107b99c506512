"""`regaze inspect`: what regaze finds in a model."""

from __future__ import annotations

from typing import Annotated

import typer

from regaze import cli
from regaze.cli import options


def inspect(
    model: options.ModelName,
    image: Annotated[
        str | None,
        typer.Option(help="An image file or a shipped scene: print the grid that its tokens form."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="A question: print the role of every token.")] = None,
    model_arg: options.ModelArg = None,
    template_arg: options.TemplateArg = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code from the model's repository.")] = False,
    allow_urls: options.AllowUrls = False,
    debug: options.Debug = False,
) -> None:
    """Print a model's layers, heads, image tokens and limits.

    Loads no weights: a configuration is enough, and a processor for --image and --prompt.
    """
    places = cli.models.places(cli.models.model_arguments(model_arg))
    places = {"trust_remote_code": trust_remote_code, **places}
    template = cli.models.template_arguments(template_arg)
    cli.inspection.show(model, image, prompt, places, allow_urls, template)
