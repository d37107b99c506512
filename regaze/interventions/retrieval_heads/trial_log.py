"""A log of trials on disk, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedModel

from regaze.errors import InputError

#: How every line of a log starts.
_START = '{"key": "'


class LogEntry(BaseModel):
    """What every line of a log holds, whatever its trial."""

    model_config = ConfigDict(strict=True)

    key: str
    recall: Annotated[float, Field(ge=0.0, le=1.0)]


class TrialLog:
    """JSON lines, one per trial, each with the trial's key.

    A key is a hash of everything that decides a trial's outcome. A run therefore finds the trials of an
    earlier run, interrupted or with other lengths, and never those of another model, text or question.

    Args:
        path: the file, continued where it exists; None writes nothing.

    Raises:
        InputError: the file cannot be read or written, or is not such a log.
    """

    def __init__(self, path: str | Path | None):
        self.path = None if path is None else Path(path)
        self._entries: dict[str, dict[str, Any]] = {}
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise InputError(f"log {str(path)!r} cannot be used: it is no regular file")
            self._file = self.path.open("a+", encoding="utf-8")
            self._read()
        except UnicodeDecodeError as error:
            raise InputError(f"log {str(path)!r} is not a log of trials: not UTF-8 text") from error
        except OSError as error:
            raise InputError(f"log {str(path)!r} cannot be used: {error.strerror or error}") from error

    def _read(self) -> None:
        self._file.seek(0)
        complete = 0  # bytes up to the end of the last whole line
        for line in iter(self._file.readline, ""):
            if not line.endswith("\n") and _START[: len(line)] == line[: len(_START)]:
                self._file.truncate(complete)  # the run was killed while it wrote this line
                break
            complete = self._file.tell()
            try:
                key = LogEntry.model_validate_json(line).key
                self._entries[key] = json.loads(line)
            except (ValueError, RecursionError):
                raise InputError(f"{str(self.path)!r} is not a log of trials: {line[:60]!r}") from None

    def get_or_run(
        self, key: str, run: Callable[[], dict[str, Any]], schema: type[BaseModel] | None = None
    ) -> dict[str, Any]:
        """The entry under `key`; where there is none, the result of `run`, which is then on disk.

        Raises:
            InputError: the entry is in the file, but does not fit `schema`.
        """
        if key in self._entries and schema is not None:
            try:
                schema.model_validate_json(json.dumps(self._entries[key]))
            except ValueError:
                raise InputError(f"{str(self.path)!r}: the trial with key {key!r} is damaged") from None
        if key not in self._entries:
            start = time.perf_counter()
            entry = run()
            seconds = round(time.perf_counter() - start, 2)
            self._entries[key] = {"key": key, "seconds": seconds, **entry}
            if self.path is not None:
                self._file.write(json.dumps(self._entries[key], ensure_ascii=False) + "\n")
                self._file.flush()
                os.fsync(self._file.fileno())
        return self._entries[key]

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is not None:
            self._file.close()


def hash_of(*parts: Any) -> str:
    """Hash of JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_hash(model: PreTrainedModel) -> str:
    """Hash of a model's configuration and weights; of each weight the sum of its bits counts."""
    config = {
        k: v for k, v in model.config.to_dict().items() if k not in ("transformers_version", "_name_or_path")
    }
    # Integer sums: a floating-point sum depends on the number of threads.
    sums = [
        (name, int(_bits(p).sum(dtype=torch.int64))) for name, p in model.named_parameters() if not p.is_meta
    ]
    return hash_of(json.loads(json.dumps(config, default=str)), sums)


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(sizes[tensor.element_size()])
