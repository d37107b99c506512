"""`regaze` on the pages: parsed, or run in this process, since a start of Python costs seconds each time."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import typer
from typer.testing import CliRunner

from regaze.cli import app
from regaze.cli.app import COMMANDS, UsageError, load_command
from regaze.errors import RegazeError

#: Options that let a command do less: pages show it on all questions, and few try the same code.
LESS = {
    "compare": ["--limit", "2", "--no-damage-check"],
    "evaluate": ["--limit", "2"],
    "reproduce": ["--limit", "2"],
    "sweep": ["--limit", "2"],
}
#: of the clock, on a machine that may have much else to do
SECONDS = 300


def parse(words: Sequence[str]) -> str | None:
    """What is wrong with the names of a command, its options and arguments; nothing is run."""
    try:
        if words and words[0] in COMMANDS:
            load_command(words[0]).make_context(words[0], list(words[1:]))
        else:
            typer.main.get_command(app).make_context("regaze", list(words))
            if words and not words[0].startswith("-"):
                return f"there is no command {words[0]!r}"
    except UsageError as error:
        return error.format_message()
    except RegazeError as error:
        return str(error)
    except typer.Exit:  # --help, --version
        pass
    return None


def run(words: Sequence[str], *, few: bool) -> tuple[str, str | None]:
    """What a command prints, and what went wrong.

    Args:
        few: ask few questions, where the command has an option for it.
    """
    arguments = [*words, *(LESS.get(words[0], ()) if few and words else ())]  # of two, the last one counts
    with time_limit(SECONDS):
        result = CliRunner().invoke(app, arguments)
    if result.exit_code == 0:
        return result.output, None
    error = result.exception
    raised = "" if error is None or isinstance(error, SystemExit) else f"{error!r}\n"
    return result.output, f"exit code {result.exit_code}\n{raised}{result.output[-2000:]}"


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what takes longer, where the system has alarms."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds} seconds: mark it slow, or let it do less")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
