"""Recipes for published figures: run them, check them, show what came out."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from regaze.cli import console
from regaze.cli.run import EvalConfig, Run
from regaze.cli.run import execute as execute_run
from regaze.errors import BadParameterError, InputError
from regaze.eval import EvalTask
from regaze.eval.reproduction import dry_run as checks_of
from regaze.eval.reproduction import ledger, prompts, questions, recipe
from regaze.eval.reproduction.dry_run import Check
from regaze.eval.reproduction.ledger import Entry, Figure
from regaze.eval.reproduction.recipe import Recipe
from regaze.interventions import Method, registry
from regaze.reading import read_text


def execute(name: str, settings: Mapping[str, Any], output: Path | None) -> tuple[Entry | None, Path]:
    """Run a recipe and write its ledger entry; returns the entry and the folder.

    Only the first of several processes has an entry.

    Args:
        settings: batch_size, max_errors, share_prefix, model_arg, template_arg, device, dtype, data, images,
            limit.
        output: the folder. Several versions of the questions each have a folder in it.

    Raises:
        InputError: no such recipe, files that are missing, a method that lacks what it needs.
    """
    chosen = recipe.load(name)
    folder = output or Path("out") / f"reproduce-{chosen.recipe}"
    methods = _methods(chosen)
    runs: dict[str | None, tuple[Mapping[str, Any], Path]] = {}
    for version in chosen.benchmark.versions or (None,):
        several = len(chosen.benchmark.versions) > 1
        place = folder / version if several and version else folder
        results, place = execute_run(_run(name, chosen, version, methods, settings, place))
        if results is None:
            return None, folder
        runs[version] = results, place
    limits = [f"the first {settings['limit']} questions of each split"] if settings["limit"] else []
    deviating = _deviating(chosen, settings)
    made = ledger.entry(chosen, recipe.sha256_of(name), runs, limits, deviating)
    ledger.write(made, folder)
    return made, folder


def _methods(chosen: Recipe) -> dict[str, Method]:
    if chosen.method is None:
        return {}
    method = registry.method_from_dict({**chosen.method.parameters, "method": chosen.method.name})
    if method.lacks:
        raise BadParameterError(f"{chosen.recipe}: {method.name}: {method.lacks}")
    return {method.name: method}


def _run(
    name: str,
    chosen: Recipe,
    version: str | None,
    methods: Mapping[str, Method],
    settings: Mapping[str, Any],
    folder: Path,
) -> Run:
    """One version of the questions."""
    where = {key: settings[key] for key in ("data", "images", "limit")}
    benchmark = questions.make(chosen, version=version, **where)
    revision = [f"revision={chosen.model.revision}"] if chosen.model.revision else []
    return Run(
        tasks=[EvalTask(benchmark, chosen.decoding.arguments())],
        methods=methods,
        config=EvalConfig(
            settings["batch_size"],
            chosen.decoding.seed,
            settings["max_errors"],
            settings["share_prefix"],
            raise_method_errors=True,
        ),
        name=chosen.recipe,
        formats=(),
        options={
            "model": chosen.model.id,
            "model_arg": [*revision, *settings["model_arg"]],
            "template_arg": settings["template_arg"],
            "dtype": settings["dtype"] or chosen.model.dtype,
            "device": settings["device"],
            "generate": [],
            "output": folder,
        },
        files={"recipe.yaml": read_text(recipe.path_of(name))},
        prepare=lambda gaze: prompts.prepare(gaze, chosen),
    )


def _deviating(chosen: Recipe, settings: Mapping[str, Any]) -> list[str]:
    """What options make another way than the recipe's."""
    dtype = settings["dtype"]
    other = (
        [f"dtype: {dtype} in place of {chosen.model.dtype}"]
        if dtype not in (None, chosen.model.dtype)
        else []
    )
    given = [(option, settings[option.replace("-", "_")]) for option in ("model-arg", "template-arg")]
    return [*other, *(f"--{option} {text}" for option, texts in given for text in texts)]


def keep(made: Entry, folder: Path) -> Path:
    """Write an entry into a ledger; returns its file."""
    return ledger.write(made, folder, ledger.file_name(made))


def dry_run(name: str | None, data: Path | None, images: Path | None) -> dict[str, list[Check]]:
    """The checks of a recipe, or of all of the package's, by recipe."""
    chosen = [recipe.load(name)] if name else recipe.load_all()
    return {each.recipe: checks_of.dry_run(each, data, images) for each in chosen}


# Showing --------------------------------------------------------------------------------------------------


def show_list(words: str | None, json: bool) -> None:
    """A table of the recipes; with words those alone that have each of them in their row, or say it.

    Raises:
        InputError: no recipe has all of the words.
    """
    wanted = (words or "").casefold().split()
    rows = {}
    for each in recipe.load_all():
        method = each.method.name if each.method else ""
        row = (each.recipe, method, each.benchmark.name, each.model.id.rpartition("/")[2], each.source.trust)
        if all(word in " ".join([*row, each.about]).casefold() for word in wanted):
            rows[each.recipe] = (each.about, row)
    if not rows:
        raise InputError(f"--list {words}: no recipe has all of these words; without them all are listed")
    if json:
        known = {name: about for name, (about, _) in rows.items()}
        console.echo(json_module.dumps(known, indent=2, ensure_ascii=False))
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("recipe", "method", "benchmark", "model", "trust"):
        table.add_column(heading, no_wrap=heading == "recipe", overflow="fold")
    for _, row in rows.values():
        table.add_row(*map(Text, row))
    console.stdout().print(table)
    console.info(f"{len(rows)} recipes; trust: of the published figure, A (best) to D")


def show_checks(found: Mapping[str, list[Check]], json: bool) -> None:
    """Print the checks, of several recipes under their names."""
    if json:
        rows = {name: [check._asdict() for check in checks] for name, checks in found.items()}
        console.echo(json_module.dumps(rows, indent=2, ensure_ascii=False))
        return
    for name, checks in found.items():
        console.stdout().print(Text(name, "bold"), soft_wrap=True)
        for state, part, text in ((check.state, check.part, check.found) for check in checks):
            console.echo(f"{state:<8} {part}: {text}")


def show_entry(made: Entry, json: bool) -> None:
    """Print a table per version of the questions, and the verdict."""
    if json:
        console.echo(json_module.dumps(made.model_dump(), indent=2, ensure_ascii=False))
        return
    out = console.stdout()
    for run in made.runs:
        title = f"{made.recipe}{f', questions {run.version}' if run.version else ''}"
        out.print(Text(f"{title}: {run.benchmark['questions']} questions", "bold"), soft_wrap=True)
        out.print(_table(run.figures))
        for each in run.figures:
            if each.reason:
                console.echo(f"{each.split} {each.figure} {each.condition}: {each.reason}")
    out.print(
        Text.assemble((made.verdict, "bold"), f": {made.reason}" if made.reason else ""), soft_wrap=True
    )


def _table(figures: list[Figure]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("", "", "published", "range", "here", ""):
        table.add_column(heading, no_wrap=True, justify="right" if heading else "left")
    for each in figures:
        interval = f" [{each.interval[0]:.1f}, {each.interval[1]:.1f}]" if each.interval else ""
        here = "undefined" if each.value is None else f"{each.value:.1f}{interval}"
        spread = f"{each.low:.1f} to {each.high:.1f}"
        name = f"{each.split} {each.figure}"
        table.add_row(name, each.condition, f"{each.published:.1f}", spread, here, each.verdict)
    return table
