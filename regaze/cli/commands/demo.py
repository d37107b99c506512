"""`regaze demo`: the whole workflow on the bundled model, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze import cli
from regaze.cli import options


def demo(
    output: Annotated[Path, typer.Option(help="Folder for results, answers and the heatmap.")] = Path(
        "out/demo"
    ),
    debug: options.Debug = False,
) -> None:
    """Run the whole workflow offline on the bundled model."""
    cli.workflow.run(output)
