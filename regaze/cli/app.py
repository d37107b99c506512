"""The command's commands, and what becomes of errors."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from regaze.cli import console
from regaze.cli.demo import demo
from regaze.cli.evaluate import evaluate
from regaze.cli.heatmap import heatmap
from regaze.cli.methods import methods
from regaze.errors import RegazeError


class Commands(TyperGroup):
    """Prints what the user can mend as one line and exits with 2; a defect keeps its traceback."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except RegazeError as error:
            if console.DEBUG in ctx.meta:
                raise
            console.fail(str(error))
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="See, edit and measure the attention of multimodal language models while they generate.",
)
app.command()(evaluate)
app.command()(heatmap)
app.command()(methods)
app.command()(demo)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"regaze {version('regaze')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `regaze` command."""
    app(prog_name="regaze")
