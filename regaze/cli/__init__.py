"""The `regaze` command. Results go to standard output, messages for a person to standard error."""

from __future__ import annotations

from regaze.cli.app import app, main

__all__ = ["app", "main"]
