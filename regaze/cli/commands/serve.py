"""`regaze serve`: vLLM's server with a method that its answers get by default."""

from __future__ import annotations

from typing import Annotated

import typer

from regaze import cli
from regaze.cli import options
from regaze.errors import InputError

#: Every further argument is one of `vllm serve`.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def serve(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help='"demo", a folder, or a name of the hub.')],
    method: options.Method = "none",
    settings: options.Settings = None,
) -> None:
    """Serve a model with edited attention, by vLLM.

    regaze serve demo --method knockout --set heads=[[0,0],[0,3]] --port 8000

    Further options are those of `vllm serve`. A request may name other methods, or none: docs/serving.md.
    """
    from regaze.serving.frontend.server import run_server  # imports torch

    if model.startswith("-"):  # unknown here, so nobody can tell its value from the model
        raise InputError(
            f"name the model before options of `vllm serve` such as {model}: regaze serve MODEL ..."
        )
    run_server(model, cli.methods.read_method(method, settings), ctx.args)
