"""The command's commands, and what becomes of errors."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from regaze.cli import console
from regaze.cli.benchmarks import benchmarks
from regaze.cli.compare import compare
from regaze.cli.demo import demo
from regaze.cli.evaluate import evaluate
from regaze.cli.heads import heads
from regaze.cli.heatmap import heatmap
from regaze.cli.inspect import inspect
from regaze.cli.methods import methods
from regaze.cli.score import score
from regaze.cli.view import view
from regaze.errors import RegazeError

# Base of every complaint about the command line. It lies in click or, with newer typer, in typer's own copy
# of click; this is its name in both.
UsageError: Any = typer.BadParameter.__base__


class Commands(TyperGroup):
    """Prints what the user can mend as one line and exits with 2; a defect keeps its traceback."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options that stand before the command."""
        try:
            return super().make_context(*args, **kwargs)
        except UsageError as error:
            raise _refusal(_usage(error)) from error

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Read the command's own options, and run it."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise _refusal(_usage(error)) from error
        except RegazeError as error:
            if console.DEBUG in ctx.meta:
                raise
            raise _refusal(str(error)) from error


def _refusal(message: str) -> typer.Exit:
    console.fail(message)
    return typer.Exit(2)


def _usage(error: Any) -> str:
    message: str = error.format_message().rstrip(".")
    return f"{message} (see `{error.ctx.command_path} --help`)" if error.ctx else message


app = typer.Typer(
    cls=Commands,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="See, edit and measure the attention of multimodal language models while they generate.",
)
app.command()(evaluate)
app.command()(compare)
app.command()(score)
app.command()(benchmarks)
app.command()(heatmap)
app.command()(view)
app.command()(heads)
app.command()(inspect)
app.command()(methods)
app.command()(demo)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"regaze {version('regaze')}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main() -> None:
    """Entry point of the `regaze` command."""
    app(prog_name="regaze")
