"""Results on standard output; messages and progress on standard error."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeAlias

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from regaze.cli import interrupt
from regaze.visible import one_line, visible

#: key that --debug sets in the metadata of the command's context
DEBUG = "regaze.debug"
#: Columns of a file or a pipe: no table is cut for want of width.
_UNLIMITED = 10_000
#: Seconds between two lines of progress where there is no terminal for bars.
_BETWEEN_LINES = 10.0


#: Called with a label, and how many of how many are done.
Report: TypeAlias = Callable[[str, int, int], None]


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
    """A console on standard output, as wide as the terminal, and where there is none as what is printed."""
    _accept_any_character()
    out = _Console(highlight=False, markup=False, emoji=False)
    if not out.is_terminal:
        out.width = _UNLIMITED
    return out


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
def progress() -> Iterator[Report]:
    """Progress on standard error, per label: bars on a terminal, else a line now and then."""
    screen = stderr()
    if not screen.is_terminal:
        yield _Lines()
        return
    with _drawing(), _bars(screen) as report:
        yield report


@contextmanager
def _bars(screen: Console) -> Iterator[Report]:
    name = TextColumn("{task.description:>8}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    bars = Progress(*columns, console=screen)

    def report(label: str, done: int, total: int) -> None:
        if not tasks:  # bars without a task would print an empty line above an early error
            bars.start()
        if label not in tasks:
            tasks[label] = bars.add_task(label, total=total)
        bars.update(tasks[label], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()


class _Lines:
    """A line each time that some seconds have passed; what takes less prints nothing."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last >= _BETWEEN_LINES:
            self.last = now
            info(f"{one_line(label)}: {done} of {total} after {now - self.start:.0f} s")
