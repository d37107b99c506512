"""Results on standard output; messages and progress on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from regaze.cli import interrupt

#: key that --debug sets in the metadata of the command's context
DEBUG = "regaze.debug"


class _Console(Console):
    """A console that leaves a broken pipe to the command, as everything else that prints does."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def stderr() -> Console:
    """A console on the current standard error."""
    return _Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """A console on the current standard output."""
    return _Console(highlight=False)


def info(message: str) -> None:
    """Print a message on standard error; where that cannot be written, the work goes on."""
    with suppress(OSError):
        stderr().print(message, markup=False)


def error(message: str) -> None:
    """Print an error as one line on standard error."""
    info("regaze: error: " + " ".join(message.split()))


def done(message: str) -> None:
    """The last message of a command: everything is done, so that a signal only makes the end come sooner."""
    interrupt.current.code = 0
    info(message)


@contextmanager
def status(message: str) -> Iterator[None]:
    """A message with a spinner while the block runs, on a terminal."""
    with _drawing(), stderr().status(message):
        yield


@contextmanager
def _drawing() -> Iterator[None]:
    interrupt.current.drawing = True
    try:
        yield
    finally:
        interrupt.current.drawing = False


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on a terminal's standard error, one per label: report(label, done, total)."""
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    screen = stderr()
    bars = Progress(*columns, console=screen, disable=not screen.is_terminal)

    def report(label: str, done: int, total: int) -> None:
        if not tasks:  # bars without a task would print an empty line above an early error
            bars.start()
        if label not in tasks:
            tasks[label] = bars.add_task(label, total=total)
        bars.update(tasks[label], completed=done)

    with _drawing():
        try:
            yield report
        finally:
            if tasks:
                bars.stop()
