"""The `regaze` command: its commands by name, and what becomes of errors."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from regaze.cli import console
from regaze.errors import RegazeError

#: Name of each command, which is also its module in `regaze.cli.commands` and the function there (with "_"
#: for "-"), and the first line of its help.
COMMANDS = {
    "evaluate": "Compare the plain and the edited model on benchmarks.",
    "compare": "Compare several methods on the same questions.",
    "score": "Score answers from a file; nothing is generated.",
    "benchmarks": "List the benchmarks, or download the questions of one.",
    "heatmap": "Draw where the model looked while it answered.",
    "view": "Write an interactive page of where the model looked.",
    "heads": "Find the retrieval heads of a model.",
    "inspect": "Print a model's layers, heads, image tokens and limits.",
    "methods": "List the methods, their parameters and sources.",
    "lm-eval": "Run lm-evaluation-harness with regaze among its models.",
    "demo": "Run the whole workflow offline on the bundled model.",
}

# Base of all errors about the command line. It is defined in click or, with newer typer, in typer's own copy
# of click; this is its name in both.
UsageError: Any = typer.BadParameter.__base__


class LazyCommand(TyperCommand):
    """A command whose module is imported when it runs; the list of commands needs only the first line."""

    def make_context(self, info_name: str | None, *args: Any, **kwargs: Any) -> Any:
        """The context of the real command, which the group then invokes."""
        return load_command(str(self.name)).make_context(info_name, *args, **kwargs)


class CommandGroup(TyperGroup):
    """Prints errors that the user can fix as one line and exits with 2; other errors show their traceback."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: LazyCommand(name, help=summary) for name, summary in COMMANDS.items()}

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the options in front of the command."""
        try:
            return super().make_context(*args, **kwargs)
        except UsageError as error:
            raise _exit(_usage(error)) from error

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Parse the command's own options and run it."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise _exit(_usage(error)) from error
        except RegazeError as error:
            if console.DEBUG in ctx.meta:
                raise
            raise _exit(str(error)) from error


def _exit(message: str) -> typer.Exit:
    console.error(message)
    return typer.Exit(2)


def _usage(error: Any) -> str:
    message: str = error.format_message().rstrip(".")
    return f"{message} (see `{error.ctx.command_path} --help`)" if error.ctx else message


def load_command(name: str) -> Any:
    """Import a command and return it as typer runs it."""
    module = import_module(f"regaze.cli.commands.{name.replace('-', '_')}")
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = getattr(module, "CONTEXT_SETTINGS", None)
    single.command(name, context_settings=settings)(getattr(module, name.replace("-", "_")))
    return typer.main.get_command(single)


app = typer.Typer(
    cls=CommandGroup,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="See, edit and measure the attention of multimodal language models while they generate.",
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"regaze {version('regaze')}")
        raise typer.Exit


@app.callback()
def _help_without_command(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main() -> None:
    """Entry point of the `regaze` command."""
    app(prog_name="regaze")
