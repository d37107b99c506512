"""Results on standard output; messages and progress on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

#: key that --debug sets in the metadata of the command's context
DEBUG = "regaze.debug"


def stderr() -> Console:
    """A console on the current standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """A console on the current standard output."""
    return Console(highlight=False)


def info(message: str) -> None:
    """Print a message on standard error."""
    stderr().print(message, markup=False)


def error(message: str) -> None:
    """Print an error as one line on standard error."""
    info("regaze: error: " + " ".join(message.split()))


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on standard error, one per label: report(label, done, total)."""
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    bars = Progress(*columns, console=stderr())

    def report(label: str, done: int, total: int) -> None:
        if not tasks:  # bars without a task would print an empty line above an early error
            bars.start()
        if label not in tasks:
            tasks[label] = bars.add_task(label, total=total)
        bars.update(tasks[label], completed=done)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()
