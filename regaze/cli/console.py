"""Results on standard output; messages and progress on standard error."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from regaze.cli import interrupt
from regaze.visible import one_line, visible

#: key that --debug sets in the metadata of the command's context
DEBUG = "regaze.debug"


class _Console(Console):
    """Shows text as it is: no markup of rich, and nothing that would act on the terminal.

    It leaves a broken pipe to the command, as everything else that prints does.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def stderr() -> Console:
    """A console on the current standard error."""
    return _Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def stdout() -> Console:
    """A console on the current standard output."""
    _accept_any_character()
    return _Console(highlight=False, markup=False, emoji=False)


def echo(text: str) -> None:
    """Print a text, or JSON, on standard output, whatever the terminal's width."""
    _accept_any_character()
    print(visible(text))


def info(message: str) -> None:
    """Print a message on standard error; where that cannot be written, the work goes on."""
    with suppress(OSError):
        stderr().print(message)


def error(message: str) -> None:
    """Print an error as one line on standard error."""
    info("regaze: error: " + one_line(message))


def warning(message: Warning | str, *place: object, **more: object) -> None:
    """Print a warning as one line on standard error; takes the place of `warnings.showwarning`."""
    info("regaze: warning: " + one_line(str(message)))


def done(message: str) -> None:
    """The last message of a command: everything is done, so that a signal only makes the end come sooner."""
    interrupt.current.code = 0
    info(message)


@contextmanager
def status(message: str) -> Iterator[None]:
    """A message with a spinner while the block runs, on a terminal."""
    with _drawing(), stderr().status(Text(message)):
        yield


def _accept_any_character() -> None:
    """Standard output as an encoding that lacks a character shows its number, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


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
    name = TextColumn("{task.description:>8}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
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
