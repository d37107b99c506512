"""The questions of the damage check: MMStar where it is at hand, else ones about shipped scenes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from regaze.cli import console
from regaze.errors import InputError
from regaze.eval import EvalTask, catalogue
from regaze.eval.benchmarks.common.download import benchmark_folder

NAME = "mmstar"


def find_task(tasks: Sequence[EvalTask], model: str, data: str | None, limit: int | None) -> EvalTask | None:
    """The damage check beside these tasks: one of them, a further one, or None where none is at hand.

    Args:
        data: where MMStar is, if that was given. limit: of the questions, as for the tasks.

    Raises:
        InputError: `data` cannot be read.
    """
    for task in tasks:
        if task.benchmark.name == NAME:
            return task
    if not any(item.images for task in tasks for item in task.benchmark.items):
        return None  # of texts, where there is nothing to see
    generation = tasks[0].generate_kwargs
    if data is not None:
        return EvalTask(_load(data, limit), generation)
    if model in (catalogue.DEMO, catalogue.BED):
        return EvalTask(_load(model, limit), generation)
    if not os.path.isdir(benchmark_folder(NAME)):
        console.info(f"no damage check: MMStar is not at hand; `regaze benchmarks get {NAME}` downloads it")
        return None
    try:
        return EvalTask(_load(None, limit), generation)
    except InputError as error:
        console.info(f"no damage check: {error}")
        return None


def _load(data: str | None, limit: int | None) -> Any:
    settings = {} if limit is None else {"limit": str(limit)}
    if data is None:
        data = str(benchmark_folder(NAME))
    return catalogue.make_benchmark(NAME, data=data, settings=settings)
