"""Progress of what takes long: tqdm's bars, where a terminal or a notebook shows them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

#: Called with a label, how much is done and how much there is.
Progress: TypeAlias = Callable[[str, int, int], None]


@contextmanager
def reporting(progress: Progress | bool | None = None) -> Iterator[Progress]:
    """What to report progress to, in the block.

    Args:
        progress: None: bars where a terminal or a notebook shows them, else nothing. True: bars in any case.
            False: nothing. A function is called instead.
    """
    if callable(progress):
        yield progress
    elif progress or (progress is None and _is_seen()):
        with _bars() as report:
            yield report
    else:
        yield _silent


@contextmanager
def counting(
    progress: Callable[[int], None] | bool | None, label: str, total: int
) -> Iterator[Callable[[int], None]]:
    """What to call with how many more are done, in the block; `progress` as for `reporting`."""
    if callable(progress):
        yield progress
        return
    done = 0
    with reporting(progress) as report:

        def more(count: int) -> None:
            nonlocal done
            done += count
            report(label, done, total)

        yield more


@contextmanager
def _bars() -> Iterator[Progress]:
    """One bar per label, closed at the end of the block."""
    from tqdm.auto import tqdm

    bars: dict[str, Any] = {}

    def report(label: str, done: int, total: int) -> None:
        if label not in bars:
            bars[label] = tqdm(desc=label, total=total, initial=done)
        bars[label].total = total  # which may have been an estimate
        bars[label].update(done - bars[label].n)

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.close()


def _is_seen() -> bool:
    """Whether standard error is a terminal, or the process the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return sys.stderr.isatty() or (shell is not None and "IPKernelApp" in shell.config)


def _silent(label: str, done: int, total: int) -> None:
    """No progress is shown."""
