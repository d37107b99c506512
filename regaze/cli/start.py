"""The entry point: signals and streams are in order before anything else is imported."""

from __future__ import annotations

import atexit
import os
import sys

from regaze.cli import interrupt


def main() -> None:
    """Entry point of the `regaze` command."""
    interrupt.current.install()
    atexit.register(interrupt.current.leave)  # the first, and so the last to be called
    _open_closed_streams()
    from regaze.cli.app import run  # not before, since a signal may come while it is imported

    interrupt.current.code = run()
    sys.exit(interrupt.current.code)


def _open_closed_streams() -> None:
    """Fill in standard streams that were closed, lest a file of a run gets their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
