"""The questions of a recipe: which constructor of its benchmark makes them, and with which options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regaze.errors import UnknownParameterError
from regaze.eval import catalogue
from regaze.eval.benchmarks.common.download import benchmark_folder
from regaze.eval.reproduction.recipe import Recipe
from regaze.names import suggestion

#: Recipe's data -> constructor of the benchmark.
CONSTRUCTORS = {"files": "load", "demo": "of_demo"}


def option_types(recipe: Recipe) -> dict[str, Any]:
    """{option: type} of the constructor that makes a recipe's questions.

    Raises:
        InputError: there is no such benchmark, or it has no such constructor.
    """
    cls = catalogue.benchmark_class(recipe.benchmark.name)
    constructor = catalogue.find_constructor(cls, CONSTRUCTORS[recipe.benchmark.data])
    if constructor is None:
        raise UnknownParameterError(
            f"{recipe.benchmark.name} has no questions of data: {recipe.benchmark.data}"
        )
    return catalogue.option_types(constructor)


def options(recipe: Recipe, version: str | None = None, limit: int | None = None) -> dict[str, Any]:
    """The options of the constructor that a recipe decides.

    Raises:
        InputError: as `option_types`. UnknownParameterError: an option that the constructor does not have.
    """
    types = option_types(recipe)
    chosen: dict[str, Any] = dict(recipe.benchmark.options)
    wanted = {
        "suffix": recipe.prompt.suffix,
        "prompt": recipe.prompt.instruction,
        "version": version,
        "limit": limit,
    }
    chosen |= {name: value for name, value in wanted.items() if value is not None}
    if "splits" in types:
        chosen["splits"] = list(recipe.benchmark.splits)
    if "max_new_tokens" in types:
        chosen["max_new_tokens"] = recipe.decoding.max_new_tokens
    for name in chosen:
        if name not in types:
            raise UnknownParameterError(
                f"{recipe.benchmark.name} has no option {name!r}{suggestion(name, types)}"
            )
    return chosen


def as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Options as `regaze.arguments` reads them."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def folder(recipe: Recipe, data: Path | None) -> Path | None:
    """Where the published files are: what `regaze benchmarks get` downloads by default; None for the demo."""
    if recipe.benchmark.data == "demo":
        return None
    return data or benchmark_folder(recipe.benchmark.name)


def make(
    recipe: Recipe,
    *,
    version: str | None = None,
    data: Path | None = None,
    images: Path | None = None,
    limit: int | None = None,
) -> Any:
    """The benchmark with a recipe's questions.

    Args:
        version: of the published files. data: folder of the files. images: folder of the images.

    Raises:
        InputError: files that are missing or malformed, and as `options`.
    """
    place = folder(recipe, data)
    return catalogue.make_benchmark(
        recipe.benchmark.name,
        data=catalogue.DEMO if place is None else place,
        images=images,
        settings=as_texts(options(recipe, version, limit)),
    )
