"""Standard error for people: messages, progress, and silence where libraries are noisy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

#: key in the command's context under which --debug leaves its mark
DEBUG = "regaze.debug"


def stderr() -> Console:
    """A console on the current standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """A console on the current standard output."""
    return Console(highlight=False)


def say(message: str) -> None:
    """A line for the person waiting."""
    stderr().print(message, markup=False)


def fail(message: str) -> None:
    """One line that says what was wrong."""
    say("regaze: error: " + " ".join(message.split()))


def quiet_libraries() -> None:
    """No loading bars, retries or advice from libraries; their errors still come through as exceptions."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate)(\.|$)")


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on standard error, one for each thing reported: report(what, done, total)."""
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    bars = Progress(*columns, console=stderr())

    def report(what: str, done: int, total: int) -> None:
        if not tasks:  # not before: bars without a task are an empty line above an early error
            bars.start()
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()
