"""`python -m regaze` is the `regaze` command."""

from __future__ import annotations

from regaze.cli import main

if __name__ == "__main__":
    main()
