"""The `regaze` command. Results go to standard output, everything for a person who waits to standard error.

Nothing here imports torch at the top level, so that `regaze --help` answers at once.
"""

from __future__ import annotations

from regaze.cli.app import app, main

__all__ = ["app", "main"]
