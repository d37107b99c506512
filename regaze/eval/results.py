"""What a run leaves on disk: `answers.jsonl`, written as the answers come, and `results.json`.

results.json, schema 1 (a figure that is undefined is null):

    schema, complete (false until every answer is scored), created (UTC, ISO 8601), seed, versions, machine
    benchmark    {name, files: {split: {file, sha256}}, suffix, limit}
    model        the name or path it was loaded by
    method       null for the plain model alone, else the intervention's to_dict()
    generation   {batch_size, and what generate() was given}
    seconds      {condition: seconds spent answering}
    figures      {split: {questions, images, scorer: {condition: {figure: estimate, counts},
                                                      difference: {figure: estimate, mcnemar_p, ...}}}}
    estimate     {value, low, high}: the figure and its 95 % interval
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import transformers

import regaze
from regaze.errors import InputError

SCHEMA = 1
ANSWERS, RESULTS = "answers.jsonl", "results.json"


def versions() -> dict[str, str]:
    """Versions of what decides the figures."""
    return {
        "regaze": regaze.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def machine() -> dict[str, Any]:
    """What decides the seconds."""
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def open_directory(directory: Path) -> None:
    """Make `directory` ready for a new run.

    Answers of two runs are neither mixed nor lost: answers.jsonl and results.json of an earlier run become
    answers.1.jsonl and results.1.json (or the next free number).

    Raises:
        InputError: the directory cannot be made or written.
    """
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / name for name in (ANSWERS, RESULTS)]
        number = 1
        while any(_numbered(path, number).exists() for path in paths):
            number += 1
        for path in paths:
            if path.exists():
                path.rename(_numbered(path, number))


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """What the operating system refuses becomes an InputError naming the output folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"output folder {directory} cannot be used: {error.strerror or error}") from error


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


class AnswerFile:
    """Appends answers as JSON lines; a batch is on disk when `append` returns.

    Raises:
        InputError: the file cannot be written (from `append`, too: a disk may fill up).
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        with _writing(self._folder):
            self._file = path.open("a", encoding="utf-8")

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one line per row and wait until the disk has them."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        with _writing(self._folder):
            self._file.writelines(lines)
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def dumps(results: Mapping[str, Any]) -> str:
    """JSON text of results; nan and infinities become null, which every JSON reader takes."""
    return json.dumps(_finite(results), indent=2, ensure_ascii=False, allow_nan=False)


def write(results: Mapping[str, Any], directory: Path) -> None:
    """Replace results.json in one step, so that a reader never sees half of it.

    Raises:
        InputError: the directory cannot be written.
    """
    text, partial = dumps(results) + "\n", directory / f"{RESULTS}.partial"
    with _writing(directory):
        partial.write_text(text, encoding="utf-8")
        partial.replace(directory / RESULTS)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
