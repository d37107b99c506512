"""Ask a benchmark's questions of the plain model and of the edited one, keep every answer, score both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch

from regaze.errors import InputError
from regaze.eval import results
from regaze.eval.benchmarks.base import Benchmark, Item, check_image

#: called with what is going on ("images", "plain", "edited"), how much of it is done, and of how much
Progress = Callable[[str, int, int], None]


class Method(Protocol):
    """What the runner needs of an intervention."""

    def to_dict(self) -> dict[str, Any]:
        """Its name and parameters as JSON values."""


class Model(Protocol):
    """What the runner needs of a `regaze.Gaze`."""

    def ask(self, images: Sequence[Any], questions: Sequence[str], **kwargs: Any) -> list[str]:
        """One answer per question."""

    def using(self, *interventions: Any) -> AbstractContextManager[Any]:
        """A context in which the interventions are active."""


def run(
    gaze: Model,
    benchmark: Benchmark,
    method: Method | None,
    output: Path,
    *,
    model_name: str,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    **generate_kwargs: Any,
) -> dict[str, Any]:
    """Run `benchmark` plain and, unless `method` is None, with it; returns what results.json holds.

    Every image is decoded before the first answer is generated. Each batch starts from its own seed, so that
    sampled answers depend neither on earlier batches nor on the condition. The first question is asked of
    both beforehand, unmeasured: a method that cannot work on this model fails at once.

    Raises:
        InputError: an empty benchmark, a batch size below 1, an image that cannot be read, an output folder
            that cannot be written. Answers made until then are in answers.jsonl.
    """
    items = benchmark.items
    if not items:
        raise InputError(f"{benchmark.name}: no questions to ask")
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: expected at least 1")
    tell = progress or (lambda what, done, total: None)
    _check_images(items, tell)
    results.open_directory(output)
    record = _header(benchmark, method, model_name, seed, {"batch_size": batch_size, **generate_kwargs})
    results.write(record, output)

    conditions = {"plain": (), "edited": (method,)} if method else {"plain": ()}
    for active in conditions.values():  # what cannot work should say so now, not after the other's hours
        with gaze.using(*active):
            gaze.ask([items[0].image], [benchmark.prompt(items[0])], **generate_kwargs)
    answers: dict[str, list[str]] = {}
    with results.AnswerFile(output / results.ANSWERS) as file:
        for condition, active in conditions.items():
            with gaze.using(*active):
                answers[condition], record["seconds"][condition] = _answer(
                    gaze, benchmark, condition, file, tell, batch_size, seed, generate_kwargs
                )
    if method:
        record["answers_changed"] = sum(map(str.__ne__, answers["plain"], answers["edited"]))
    record["figures"] = benchmark.score(answers, seed=seed)
    record["complete"] = True
    results.write(record, output)
    return record


def _header(
    benchmark: Benchmark, method: Method | None, model: str, seed: int, generation: dict[str, Any]
) -> dict[str, Any]:
    """results.json as it stands before the first answer."""
    return {
        "schema": results.SCHEMA,
        "complete": False,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "benchmark": benchmark.describe(),
        "model": model,
        "method": method.to_dict() if method else None,
        "generation": generation,
        "seed": seed,
        "versions": results.versions(),
        "machine": results.machine(),
        "seconds": {},
        "figures": {},
    }


def _check_images(items: Sequence[Item], tell: Progress) -> None:
    first_use = {item.image: item for item in reversed(items)}
    for done, item in enumerate(first_use.values(), start=1):
        check_image(item)
        tell("images", done, len(first_use))


def _answer(
    gaze: Model,
    benchmark: Benchmark,
    condition: str,
    file: results.AnswerFile,
    tell: Progress,
    batch_size: int,
    seed: int,
    generate_kwargs: dict[str, Any],
) -> tuple[list[str], float]:
    """Answers to every item in order, and their seconds; a batch is on disk before the next begins."""
    answers: list[str] = []
    seconds = 0.0
    tell(condition, 0, len(benchmark.items))
    for start in range(0, len(benchmark.items), batch_size):
        batch = benchmark.items[start : start + batch_size]
        prompts = [benchmark.prompt(item) for item in batch]
        torch.manual_seed(seed + start)
        began = time.perf_counter()
        new = gaze.ask([item.image for item in batch], prompts, batch_size=batch_size, **generate_kwargs)
        seconds += time.perf_counter() - began
        file.append(_row(condition, *each) for each in zip(batch, prompts, new, strict=True))
        answers.extend(new)
        tell(condition, len(answers), len(benchmark.items))
    return answers, seconds


def _row(condition: str, item: Item, prompt: str, answer: str) -> dict[str, str]:
    return {
        "condition": condition,
        "key": item.key,
        "image": item.image.name,
        "prompt": prompt,
        "label": item.label,
        "answer": answer,
    }
