"""`regaze reproduce`: published figures again, by recipe, and whether they come out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from regaze import cli
from regaze.cli import options
from regaze.errors import InputError


def _complete_recipes(incomplete: str) -> list[str]:
    """For the shell: the recipes whose names begin so."""
    from regaze.eval.reproduction import recipe  # here, so that --help does not import it

    return [name for name in recipe.names() if name.startswith(incomplete)]


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            autocompletion=_complete_recipes, help="A recipe of --list, or a file of your own (.yaml)."
        ),
    ] = None,
    list_: Annotated[
        bool,
        typer.Option("--list", help="List recipes, all or those with the words of NAME."),
    ] = False,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry", help="Check files, parameters and prompt without the model; without NAME all recipes."
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with the benchmark's official files. [what `regaze benchmarks get` has]"),
    ] = None,
    images: options.Images = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N questions of each split: to try it, not to judge.")
    ] = None,
    batch_size: options.BatchSize = 16,
    max_errors: options.MaxErrors = 10,
    share_prefix: options.SharePrefix = True,
    model_arg: options.ModelArg = None,
    template_arg: options.TemplateArg = None,
    device: options.Device = None,
    dtype: Annotated[str | None, typer.Option(help="Another dtype than the recipe's.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for results; a run in it is continued. [out/reproduce-NAME]")
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="Folder that also gets the ledger entry.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """Run a recipe for a published figure: does it come out?

    A recipe has everything that its source says about a figure: model, prompt, decoding, method and
    parameters, question files, scorer. The plain model and the method answer, and each figure is compared
    with the published range: inside, outside, or cannot say (docs/recipes/reproduce.md has the rules). The
    answers, the report and the entry for the ledger, ledger.json, are in the output folder.

    --dry exits with 1 where a recipe or a file is wrong; a file that is missing is named, and no failure.
    """
    if list_:
        cli.recipes.show_list(name, json)
    elif dry:
        _dry(name, data, images, json)
    elif name is None:
        raise InputError("reproduce what? `regaze reproduce --list` names the recipes")
    else:
        settings: Mapping[str, Any] = {
            "batch_size": batch_size,
            "max_errors": max_errors,
            "share_prefix": share_prefix,
            "model_arg": list(model_arg or ()),
            "template_arg": list(template_arg or ()),
            "device": device,
            "dtype": dtype,
            "data": data,
            "images": images,
            "limit": limit,
        }
        _run(name, settings, output, ledger, json)


def _dry(name: str | None, data: Path | None, images: Path | None, json: bool) -> None:
    cli.models.quiet_libraries()
    found = cli.recipes.dry_run(name, data, images)
    cli.recipes.show_checks(found, json)
    if any(check.state == "wrong" for checks in found.values() for check in checks):
        raise typer.Exit(1)


def _run(
    name: str, settings: Mapping[str, Any], output: Path | None, ledger: Path | None, json: bool
) -> None:
    made, folder = cli.recipes.execute(name, settings, output)
    if made is None:
        return
    cli.recipes.show_entry(made, json)
    if ledger is not None:
        cli.console.done(f"the ledger has {cli.recipes.keep(made, ledger)}")
    cli.console.done(f"results, answers, report and ledger.json are in {folder}")
