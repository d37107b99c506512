"""`regaze benchmarks`: the benchmarks with their terms and options, and `get` to download questions."""

from __future__ import annotations

import inspect
import json as json_module
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.text import Text

from regaze.cli import console, options
from regaze.errors import InputError
from regaze.eval import catalogue
from regaze.eval.benchmarks import download


def benchmarks(
    action: Annotated[
        str | None, typer.Argument(help="A benchmark to show, or get, to download questions. [show all]")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="The benchmark whose questions to download.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """List the benchmarks, show one, or download its questions."""
    if action == "get":
        _download(name)
    elif name is not None:
        there = "`regaze benchmarks get NAME` and `regaze benchmarks NAME`"
        raise InputError(f"unknown action {action!r}; there is {there}")
    else:
        _list(catalogue.NAMES if action is None else [catalogue.registered_name(action)], json)


def _download(name: str | None) -> None:
    if name is None:
        raise InputError(f"get what? There are {', '.join(catalogue.NAMES)}")
    name = catalogue.registered_name(name)
    about = catalogue.benchmark_class(name).about
    download(name, report=console.info)
    console.info(f"licence: {about.licence}")
    console.info(f"images are not part of it: {about.images}")


def _list(names: Iterable[str], json: bool) -> None:
    known = {name: _describe(catalogue.benchmark_class(name)) for name in names}
    if json:
        console.echo(json_module.dumps(known, indent=2, ensure_ascii=False))
        return
    out = console.stdout()
    for name, about in known.items():
        out.print(Text.assemble((name, "bold"), f"  {about['title']}, {about['paper']}"), soft_wrap=True)
        out.print(f"  licence: {about['licence']}", soft_wrap=True)
        out.print(f"  images: {about['images']}", soft_wrap=True)
        for source, names in about["options"].items():
            text = ", ".join(names) or "none"
            out.print(f"  --data {source}: options {text}", soft_wrap=True)
        out.print()


def _describe(cls: Any) -> dict[str, Any]:
    about = cls.about
    return {
        **{key: getattr(about, key) for key in ("title", "paper", "licence", "images", "home", "hub")},
        "summary": (inspect.getdoc(cls) or "").split("\n")[0],
        "options": {
            source: sorted(catalogue.option_types(constructor))
            for kind, source in catalogue.SOURCES.items()
            if (constructor := catalogue.find_constructor(cls, kind)) is not None
        },
    }
