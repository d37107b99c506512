"""The `regaze` command: its commands by name, and what becomes of errors."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from regaze.cli import console
from regaze.cli.examples import epilog
from regaze.errors import GuessWarning, RegazeError

#: Name of each command, which is also its module in `regaze.cli.commands` and the function there (with "_"
#: for "-"), and the first line of its help.
COMMANDS = {
    "evaluate": "Compare the plain and the edited model on benchmarks.",
    "compare": "Compare several methods on the same questions.",
    "audit": "Say which methods do more than their own controls.",
    "reproduce": "Run a recipe for a published figure: does it come out?",
    "sweep": "Draw figures against a parameter of a method.",
    "score": "Score answers from a file; nothing is generated.",
    "benchmarks": "List the benchmarks, show one, or download its questions.",
    "heatmap": "Draw where the model looked while it answered.",
    "objects": "Find objects by where the model looks at their names.",
    "view": "Write an interactive page of where the model looked.",
    "heads": "Find the retrieval heads of a model.",
    "fit": "Fit the directions that a method needs on a model.",
    "inspect": "Print a model's layers, heads, image tokens and limits.",
    "methods": "List methods and controls, their parameters and sources.",
    "lm-eval": "Run lm-evaluation-harness with regaze among its models.",
    "serve": "Serve a model with edited attention, by vLLM.",
    "doctor": "Say what works here, and what to install for the rest.",
    "demo": "Run the whole workflow offline on the bundled model.",
    "bed": "Show the parts of the test bed, or fetch its language model.",
}

HELP = {"help_option_names": ["-h", "--help"]}
#: As the shell has it for a process that SIGPIPE ends.
_BROKEN_PIPE = 128 + 13
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
        with _errors_in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Parse the command's own options and run it."""
        with _errors_in_one_line(ctx):
            return super().invoke(ctx)


@contextmanager
def _errors_in_one_line(ctx: typer.Context | None = None) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise _exit(_usage(error)) from error
    except BrokenPipeError as error:  # the reader of the output has seen enough, as `head` has
        _drop_output()
        raise typer.Exit(_BROKEN_PIPE) from error
    except (RegazeError, OSError) as error:
        if ctx is not None and console.DEBUG in ctx.meta:
            raise
        if isinstance(error, OSError):  # it may have been the output's
            _drop_output()
        raise _exit(_reason(error)) from error


def _reason(error: RegazeError | OSError) -> str:
    """Of an OSError that nothing nearer to its cause has named: the file, if any, and the reason."""
    if isinstance(error, RegazeError):
        return str(error)
    file = f"{error.filename}: " if error.filename is not None else ""
    return f"{file}{error.strerror or error}"


def _exit(message: str) -> typer.Exit:
    console.error(message)
    return typer.Exit(2)


def _usage(error: Any) -> str:
    message: str = error.format_message().rstrip(".")
    return f"{message} (see `{error.ctx.command_path} --help`)" if error.ctx else message


def load_command(name: str) -> Any:
    """Import a command and return it as typer runs it."""
    from regaze.cli.groups import spread  # here, since the list of commands needs no options

    module = import_module(f"regaze.cli.commands.{name.replace('-', '_')}")
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = HELP | getattr(module, "CONTEXT_SETTINGS", {})
    single.command(name, context_settings=settings, epilog=epilog(name))(
        spread(getattr(module, name.replace("-", "_")))
    )
    return typer.main.get_command(single)


app = typer.Typer(
    cls=CommandGroup,
    context_settings=HELP,
    invoke_without_command=True,
    add_completion=True,
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


def run() -> int:
    """Run the command; returns its exit code."""
    _quiet_libraries()
    try:
        app(prog_name="regaze")
        code = 0
    except SystemExit as ending:  # how typer always ends
        code = ending.code if isinstance(ending.code, int) else 0
    return _flush() or code


def _quiet_libraries() -> None:
    """No warnings of libraries, not even while they are imported; their errors are raised."""
    logging.disable(logging.WARNING)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"regaze(\.|$)")
        warnings.filterwarnings("default", category=GuessWarning)
    warnings.showwarning = console.warning


def _flush() -> int:
    """Write what is left of the output; returns the exit code where that fails, else 0."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return _BROKEN_PIPE
    except OSError as error:
        _drop_output()
        console.error(f"the output cannot be written: {error.strerror or error}")
        return 2
    return 0


def _drop_output() -> None:
    """Let Python write what is left to nowhere, which it would otherwise complain about when it ends."""
    with suppress(OSError, AttributeError):  # there is none, or it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
