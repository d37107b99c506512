"""`regaze compare`: many methods on the same questions, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from regaze.cli import console, options, running, tables
from regaze.errors import InputError


def compare(
    ctx: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="What to run, with commas between.")] = "pope",
    named: Annotated[
        str | None, typer.Option("--benchmark", help="The same as an option.", show_default=False)
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help='Names with commas between, all, or a JSON or YAML file: a list of {"label", "method", '
            "parameters...}."
        ),
    ] = "all",
    model: options.Model = "demo",
    config: running.Config = None,
    data: running.Data = None,
    images: running.Images = None,
    bench: running.Bench = None,
    limit: running.Limit = None,
    batch_size: running.BatchSize = 16,
    max_new_tokens: running.LongestAnswer = 16,
    generate: running.Generate = None,
    seed: options.Seed = 0,
    max_errors: running.MaxErrors = 10,
    share_prefix: running.SharePrefix = True,
    judge: running.Judge = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    output: running.Output = None,
    resume: running.Resume = False,
    export: running.Export = None,
    json: Annotated[bool, typer.Option("--json", help="Print results.json and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """Run several methods on the same questions, each against the plain model.

    A method that cannot run on the model is a line that says why, not the end of the comparison.
    """
    if ctx.params.pop("named"):
        benchmark = ctx.params["benchmark"] = named or benchmark
    chosen = read_methods(methods)
    name = f"compare-{benchmark.replace(',', '-')}"
    request = running.Request(
        running.tasks(ctx.params), chosen, name, running.given(ctx), raise_method_errors=False
    )
    results, folder = running.execute(request)
    if results is None:
        return
    if json:
        from regaze.eval.run.results import dumps

        typer.echo(dumps(results))
    else:
        typer.echo(tables.comparison(results))
    console.say(f"the report, all figures and the answers are in {folder}")


def read_methods(text: str) -> dict[str, Any]:
    """Methods by label, from names, "all", the name of a file, or a JSON list.

    Raises:
        InputError: no method, a label twice, a file that holds no such list.
        UnknownMethodError, UnknownParameterError, BadParameterError: as the registry says.
    """
    from regaze.interventions import registry

    if text == "all":
        return dict(registry.default_methods())
    if text.lstrip().startswith("["):
        entries = _list(text, "--methods")
    elif Path(text).suffix in (".json", ".yaml", ".yml"):
        try:
            entries = _list(Path(text).read_text(encoding="utf-8"), f"--methods {text}")
        except OSError as error:
            raise InputError(f"--methods {text} cannot be read: {error.strerror}") from error
    else:
        entries = [{"method": name.strip()} for name in text.split(",") if name.strip()]
    out: dict[str, Any] = {}
    for entry in entries:
        label = str(entry.get("label", entry.get("method")))
        if label in out:
            raise InputError(f"--methods: {label!r} twice; give each its own label")
        out[label] = registry.method_from_dict({key: value for key, value in entry.items() if key != "label"})
    if not out:
        raise InputError("--methods: no method was given")
    return out


def _list(text: str, source: str) -> list[dict[str, Any]]:
    import yaml

    try:
        entries = yaml.safe_load(text)  # JSON is YAML, too
    except yaml.YAMLError as error:
        raise InputError(f"{source} is neither JSON nor YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{source}: expected a list of {{label, method, parameters...}}")
    return entries
